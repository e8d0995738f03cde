"""Runs a command of minutes: tells how far it is, ends it when it stalls, leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.kit.clock import Clock, monotonic

_TAIL_LINES = 200
_LOOK_EVERY_S = 1.0
_STALLED_S = 300.0
_PIP_LINE = re.compile(r"\s*(Collecting|Downloading|Using cached|Installing collected) (\S+)(.*)")
_SIZE = re.compile(r"\(([\d.]+ [kMG]?B)\)")
_SAYS = {
    "Collecting": "looking for",
    "Downloading": "downloading",
    "Using cached": "downloaded before:",
}


@dataclass(frozen=True, slots=True)
class Step:
    """What is being done, and how many bytes there are so far."""

    what: str
    bytes_done: int = 0


Report = Callable[[Step], None]


class CommandFailed(Exception):
    """It ended badly, or stalled; `output` is the end of what it wrote."""

    def __init__(self, what: str, output: str, *, is_stalled: bool = False) -> None:
        """Say what of the whole it was."""
        super().__init__(what)
        self.what, self.output, self.is_stalled = what, output, is_stalled


def run_watched(
    command: Sequence[str],
    *,
    folder: Path,
    env: Mapping[str, str],
    what: str,
    report: Report,
    pass_fds: tuple[int, ...] = (),
    clock: Clock = monotonic,
    stalled_s: float = _STALLED_S,
    look_every_s: float = _LOOK_EVERY_S,
) -> None:
    """Run it to its end.

    Args:
        command: the program with its arguments.
        folder: where it runs, and where all that it writes goes.
        env: its environment.
        what: what it does.
        report: told of each step, and of the bytes so far.
        pass_fds: open files that it inherits.
        clock: a monotonic clock.
        stalled_s: how long it may neither say nor write anything.
        look_every_s: how often its files are looked at.

    Raises:
        CommandFailed: it did not succeed.
        OSError: it can't be started.
    """
    process = _start(command, folder, env, pass_fds)
    lines: deque[str] = deque(maxlen=_TAIL_LINES)
    seen = _Seen(what)
    reader = threading.Thread(target=_read, args=(process, lines, seen), daemon=True)
    reader.start()
    try:
        is_stalled = _watch(process, folder, seen, report, Stall(clock, stalled_s, look_every_s))
    finally:
        _end(process)
        reader.join()
    if process.returncode:
        raise CommandFailed(what, "".join(lines), is_stalled=is_stalled)


def _start(
    command: Sequence[str], folder: Path, env: Mapping[str, str], pass_fds: tuple[int, ...]
) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603 - the caller's command
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=pass_fds,
        start_new_session=True,
    )


class Stall:
    """Tells when something has not moved for too long."""

    def __init__(self, clock: Clock, after_s: float, look_every_s: float = _LOOK_EVERY_S) -> None:
        """Begin to watch; `has_come` is asked each `look_every_s` seconds."""
        self._clock, self._after_s, self.look_every_s = clock, after_s, look_every_s
        self._last: object = None
        self._since = clock()

    def has_come(self, state: object) -> bool:
        """Take how far it is; tell whether that has been so for too long."""
        if state != self._last:
            self._last, self._since = state, self._clock()
        return self._clock() - self._since > self._after_s


class _Seen:
    """What it said last, and how much."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.lines = 0


def _watch(
    process: subprocess.Popen[str],
    folder: Path,
    seen: _Seen,
    report: Report,
    stall: Stall,
) -> bool:
    """Wait for its end; return whether it has stalled, in which case it still runs."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(stall.look_every_s)
            return False
        size = _size(folder)
        report(Step(seen.what, size))
        if stall.has_come((size, seen.lines)):
            return True


def _read(process: subprocess.Popen[str], lines: deque[str], seen: _Seen) -> None:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    with process.stdout:
        for line in process.stdout:
            lines.append(line)
            seen.lines += 1
            seen.what = step_of(line) or seen.what


def step_of(line: str) -> str | None:
    """Return what a line of pip's tells; None if nothing that is worth telling."""
    found = _PIP_LINE.match(line)
    if found is None:
        return None
    verb, item, rest = found.groups()
    if verb not in _SAYS:
        return "unpacking"
    name = item.rsplit("/", 1)[-1]
    if name.endswith(".whl"):
        name = " ".join(name.split("-")[:2])
    size = _SIZE.search(rest)
    return f"{_SAYS[verb]} {name}{f' ({size[1]})' if size else ''}"


def _end(process: subprocess.Popen[str]) -> None:
    """End what is left of it, with all that it has started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _size(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # removed meanwhile
                total += os.lstat(os.path.join(root, name)).st_size  # noqa: PTH118 - thousands
    return total
