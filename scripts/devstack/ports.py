"""Which ports are free, and who holds the others."""

from __future__ import annotations

import socket
from contextlib import suppress

import psutil


def is_free(host: str, port: int) -> bool:
    """Tell whether a server could listen there."""
    with _socket(host) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str, start: int = 0) -> int:
    """Return a port that is free now: the first from `start` on, or any if `start` is 0."""
    candidates = range(start, min(start + 1000, 65536)) if start else ()
    found = next((port for port in candidates if is_free(host, port)), 0)
    if found:
        return found
    with _socket(host) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def holder(port: int) -> str | None:
    """Name the process that listens on the port, as far as this user may see it."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if port in _listening(process):
                return f"{process.name()} (pid {process.pid})"
    return None


def _listening(process: psutil.Process) -> set[int]:
    entries = process.net_connections(kind="tcp")
    return {entry.laddr.port for entry in entries if entry.status == psutil.CONN_LISTEN}


def _socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
