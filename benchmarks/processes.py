"""Programs under measurement: started, ended, and what their whole process tree costs."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

_GRACE_S = 8.0
_POLL_S = 0.005


class BenchError(Exception):
    """A benchmark can't be run; the message names the cause."""


class Program:
    """A running program in a session of its own, with its output in a file."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        self.started = time.monotonic()
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def require_running(self) -> None:
        """Raise `BenchError` with the end of the program's output if it has ended."""
        code = self._process.poll()
        if code is not None:
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-1500:]
            raise BenchError(f"it ended with exit code {code}:\n{tail}")

    def stop(self) -> None:
        """End the program and what it started; first politely."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)


def tree(pid: int) -> list[psutil.Process]:
    """Return a process with all its descendants; nothing if it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process tree, of children that have ended too.

    A child's time moves to its parent's `children_*` when it is reaped, so the sum over the tree
    never loses it (macOS does not report those).
    """
    total = 0.0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
            total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process tree in MB; shared pages count for each."""
    total = 0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1_000_000


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, path: str, body: bytes | None = None, key: str = "") -> int:
    """Send one request (POST if there is a body) and return the status; 0: no answer."""
    return fetch(port, path, body, key)[0]


def fetch(port: int, path: str, body: bytes | None = None, key: str = "") -> tuple[int, bytes]:
    """Send one request (POST if there is a body) and return status and body of the answer; 0: none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def await_answer(
    program: Program, port: int, path: str, body: bytes, *, key: str, within_s: float
) -> float:
    """Ask until 200 comes, and return the seconds since the program was started.

    Raises:
        BenchError: the program ended, or the time is over.
    """
    status = 0
    while time.monotonic() - program.started < within_s:
        program.require_running()
        status = ask(port, path, body, key)
        if status == 200:
            return time.monotonic() - program.started
        time.sleep(_POLL_S)
    raise BenchError(f"no 200 within {within_s:.0f} s; the last status was {status or 'none'}")


def plain_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return an environment that nothing of the developer's reaches, with `extra`.

    Above all PYTHONDONTWRITEBYTECODE stays out: with it each start compiles everything anew.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", "NO_PROXY": "127.0.0.1", **extra}
