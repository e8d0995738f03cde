"""`python -m shared.kit.healthy RUN_FILE`: is the service that wrote the file ready? For images.

It exits with 0 if `/readyz` answers 200, else with 1 and the reason. A container engine runs it every few
seconds, so it loads next to nothing: `http.client` and dataclasses would double its CPU time.
"""

from __future__ import annotations

import json
import socket
import sys

_TIMEOUT_S = 2.0
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_MOST_BYTES = 64 * 1024


def problem(path: str) -> str | None:
    """Return why the service is not ready, None if it is.

    Args:
        path: of the file in which it says where it listens (`shared.kit.run_file`).
    """
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib is slow to load
            found = json.load(file)
        host, port = str(found.get("host") or "127.0.0.1"), int(found["port"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "it does not run"
    try:
        status = _status(_ANY.get(host, host), port)
    except OSError as error:
        return f"it does not answer ({type(error).__name__})"
    return None if status == b"200" else f"/readyz answers {status.decode('latin-1') or 'nothing'}"


def _status(host: str, port: int) -> bytes:
    name = f"[{host}]" if ":" in host else host
    request = f"GET /readyz HTTP/1.1\r\nhost: {name}:{port}\r\nconnection: close\r\n\r\n"
    with socket.create_connection((host, port), _TIMEOUT_S) as connection:
        connection.sendall(request.encode("latin-1"))
        answer = b""
        while b"\r\n" not in answer and len(answer) < _MOST_BYTES:
            piece = connection.recv(4096)
            if not piece:
                break
            answer += piece
    words = answer.split(b"\r\n", 1)[0].split(b" ")
    return words[1] if len(words) > 1 else b""


def main(arguments: list[str]) -> int:
    """Look, and say what is wrong."""
    found = problem(arguments[0])
    if found is not None:
        sys.stderr.write(f"{found}\n")
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
