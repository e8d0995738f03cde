"""Where a running service answers, for commands on the same machine: a small file in `run/`.

It is a hint and no lock: a service that was killed leaves it behind, so who reads it asks there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Address:
    """Where a service listens; the host is None if the file does not say."""

    port: int
    host: str | None = None


@contextmanager
def announced(path: Path, *, host: str, port: int) -> Iterator[None]:
    """Keep the service's address in the file as long as it runs.

    A disk that refuses the file does not keep a service from serving. A file in which another
    process has put its own address by then is left to that process.
    """
    mine = Address(port=port, host=host)
    with suppress(OSError):
        _write(path, mine)
    try:
        yield
    finally:
        if read_run_file(path) == mine:
            with suppress(OSError):
                path.unlink()


def read_run_file(path: Path) -> Address | None:
    """Return the address in the file; None if there is none, or none that makes sense."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        port, host = found["port"], found.get("host")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if type(port) is not int or not 0 < port < 65536:
        return None
    return Address(port=port, host=host if isinstance(host, str) and host else None)


def _write(path: Path, address: Address) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(address)), encoding="utf-8")
    draft.replace(path)
