"""The log file of one worker: bounded on disk, and read for the cause when an engine ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from local_agent.cleaning import cleaned
from local_agent.process.mask import Mask
from local_agent.process.records import file_stem

TAIL_LINES = 400
"""How much of the log `cause_of` is given: vLLM's cause may stand 200 lines above its end."""

_TAIL_BYTES = 65_536
_END_LINES = 20
_CAUSE_LINES = 3
_CAUSE_CHARS = 300
_TROUBLE = re.compile(
    r"error|fail|exception|cannot|can't|denied|not found|out of memory|abort", re.IGNORECASE
)
_ELSEWHERE = re.compile(r"See (?:root cause above|stack trace \(above\))")
_RAISED = re.compile(r"(?:^|\] )((?:\w+\.)*\w*(?:Error|Exception): .+)")


def log_file(folder: Path, name: str) -> Path:
    """Return where the log of the worker `name` lies; its older part lies beside it."""
    return folder / f"{file_stem(name)}.log"


def older_part(path: Path) -> Path:
    """Return where the older part of a log lies, if there is one."""
    return path.with_name(f"{path.name}.1")


class WorkerLog:
    """Bounds the file that a child writes to.

    The child holds the file itself, opened for appending, so that it goes on writing when the agent
    is gone. A file over the limit is copied aside and emptied in place; what is written in between
    the two may be lost. `mask` hides secrets in what `tail` returns.
    """

    def __init__(self, path: Path, max_bytes: int, mask: Mask | None = None) -> None:
        self._path = path
        self._older = older_part(path)
        self._max_bytes = max_bytes
        self._mask = mask or Mask()
        self._start = 0
        self._is_split = False

    def open(self) -> int:
        """Return a file descriptor for the child; `tail` forgets what earlier runs wrote."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.trim()
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._start = os.fstat(fd).st_size
        self._is_split = False
        return fd

    def resume(self) -> None:
        """Take over a file that a child holds already; `tail` tells what is written from now on."""
        try:
            with self._path.open("rb") as source:
                size = source.seek(0, os.SEEK_END)
                begin = source.seek(max(0, size - _TAIL_BYTES))
                end = source.read(size - begin)
        except OSError:
            return  # it begins with whatever is written then
        # the line that is being written counts whole: half of it may begin with half a secret
        self._start = size - len(end.rpartition(b"\n")[2])

    def trim(self) -> None:
        """Keep an oversized file as `….log.1`, of a huge one its end, and empty the file.

        Kept whole, it tells whoever follows the log where to read on.
        """
        try:
            size = self._path.stat().st_size
            if size <= self._max_bytes:
                return
            with self._path.open("rb") as source, self._older.open("wb") as target:
                self._older.chmod(0o600)
                source.seek(0 if size <= 2 * self._max_bytes else size - self._max_bytes)
                shutil.copyfileobj(source, target)
            os.truncate(self._path, 0)
            self._start = 0
            self._is_split = True
        except OSError:
            return  # a full disk must not end the worker

    def tail(self, lines: int) -> list[str]:
        """Return the last lines of this run, without empty ones."""
        older = _end_of(self._older, 0) if self._is_split else b""
        data = self._mask.hide(older + _end_of(self._path, self._start))
        text = data.decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def _end_of(path: Path, start: int) -> bytes:
    """Return the file's last lines, none of those before `start`; nothing if it can't be read."""
    try:
        with path.open("rb") as source:
            size = source.seek(0, os.SEEK_END)
            begin = source.seek(max(min(start, size), size - _TAIL_BYTES))
            found = source.read()
            # half a line may begin with half a secret
            return found if begin == start else found[found.find(b"\n") + 1 :]
    except OSError:
        return b""


def cause_of(code: int | None, tail: Sequence[str]) -> str:
    """Say in one line why a process ended: its exit, and what its log says of trouble.

    Host paths shrink to their last part and addresses are dropped, since callers see this text.

    Args:
        code: its exit code, negative for a signal; None if nobody can know it.
        tail: the last lines that it wrote.
    """
    end = _root(tail) or [line for line in tail[-_END_LINES:] if _TROUBLE.search(line)]
    said = list(dict.fromkeys(map(cleaned, end)))
    text = "; ".join(said[-_CAUSE_LINES:])
    if len(text) > _CAUSE_CHARS:
        text = f"{text[:_CAUSE_CHARS]}…"
    return f"{_exit(code)}: {text}" if text else _exit(code)


def _root(tail: Sequence[str]) -> list[str]:
    """Return what was raised first, where the end points there: vLLM's parts fail one by one."""
    if not any(_ELSEWHERE.search(line) for line in tail[-_END_LINES:]):
        return []
    return [found[1] for line in tail if (found := _RAISED.search(line))][:1]


def _exit(code: int | None) -> str:
    if code is None:
        return "the engine ended (its exit code is unknown: an earlier agent had started it)"
    if code >= 0:
        return f"the engine exited with code {code}"
    try:
        return f"the engine was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"the engine was ended by signal {-code}"
