"""The agent's own log on disk, bounded while it runs: launchd appends to a file, and never begins a new one."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from local_agent.process.log import WorkerLog

MOST_BYTES = 20_000_000
_EVERY_S = 60.0
_END_S = 5.0
_OUTPUTS = (1, 2)


@contextmanager
def bounded(
    log: Path, *, most_bytes: int = MOST_BYTES, every_s: float = _EVERY_S
) -> Iterator[None]:
    """Keep the file bounded while the context is open, if this process writes its log there.

    A thread looks: what the loop does must not be what keeps the disk from filling.

    Args:
        log: the file; an older part is kept beside it, as `….1`.
        most_bytes: a log over this is moved aside.
        every_s: how often it is looked at, the first time at once.
    """
    is_over = threading.Event()

    def look() -> None:
        while True:
            trim(log, most_bytes)
            if is_over.wait(every_s):
                return

    thread = threading.Thread(target=look, name="own log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(_END_S)  # half a copy would have taken the place of the older part


def trim(log: Path, most_bytes: int, outputs: Collection[int] = _OUTPUTS) -> None:
    """Move what is in the file aside, if it is too much and one of `outputs` writes to that file.

    What is written while it is copied may be lost.
    """
    ours = [fd for fd in outputs if _is(fd, log)]
    if not ours:
        return
    for fd in ours:
        # who does not append writes on at the old place, behind a hole as large as the old log
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    WorkerLog(log, most_bytes).trim()


def _is(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False
