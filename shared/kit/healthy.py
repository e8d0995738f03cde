"""`python -m shared.kit.healthy RUN_FILE`: is the service that wrote the file ready? For images.

It exits with 0 if `/readyz` answers 200, else with 1 and the reason. It loads next to nothing, since an
engine runs it every few seconds.
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Sequence
from pathlib import Path

from shared.kit.run_file import Address, read_run_file

_TIMEOUT_S = 2.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def problem(path: Path) -> str | None:
    """Return why the service is not ready, None if it is.

    Args:
        path: of the file in which it says where it listens.
    """
    found = read_run_file(path)
    if found is None:
        return "it does not run"
    try:
        status = _status(found)
    except (OSError, http.client.HTTPException) as error:
        return f"it does not answer ({type(error).__name__})"
    return None if status == http.client.OK else f"/readyz answers {status}"


def _status(address: Address) -> int:
    host = address.host or "127.0.0.1"
    connection = http.client.HTTPConnection(_ANY.get(host, host), address.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()


def main(arguments: Sequence[str]) -> int:
    """Look, and say what is wrong."""
    found = problem(Path(arguments[0]))
    if found is not None:
        sys.stderr.write(f"{found}\n")
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
