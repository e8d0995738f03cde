"""What runs, on disk: `$IIR_HOME/run/dev.json`, and how to end exactly that.

A pid alone proves nothing after a reboot or a day. Every process is named by pid and creation time,
so that a foreign process which got the same pid is never touched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

_CLOCK_TOLERANCE_S = 0.5


@dataclass(frozen=True)
class Identity:
    """One process, beyond doubt."""

    pid: int
    create_time: float

    @classmethod
    def of(cls, pid: int | None = None) -> Identity:
        """Return the identity of a process, or of this one; raises `psutil.NoSuchProcess`."""
        process = psutil.Process(pid)
        return cls(process.pid, process.create_time())

    def process(self) -> psutil.Process | None:
        """Return the process if it still lives."""
        try:
            process = psutil.Process(self.pid)
            is_same = abs(process.create_time() - self.create_time) < _CLOCK_TOLERANCE_S
            return process if is_same and _lives(process) else None
        except psutil.Error:
            return None


@dataclass
class Record:
    """The supervising process, its children and how far they are (`starting`, `ready`)."""

    supervisor: Identity
    router_url: str
    has_model: bool
    state: str = "starting"
    children: dict[str, Identity] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(path)

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """Return the record, or None if there is none that can be read."""
        try:
            found = json.loads(path.read_text())
            children = {name: Identity(**entry) for name, entry in found.pop("children").items()}
            return cls(supervisor=Identity(**found.pop("supervisor")), children=children, **found)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def is_running(self) -> bool:
        """Tell whether the supervising process lives."""
        return self.supervisor.process() is not None


def with_descendants(identities: Iterable[Identity]) -> list[psutil.Process]:
    """Return those that live, and everything they started."""
    found: list[psutil.Process] = []
    for identity in identities:
        process = identity.process()
        if process is not None:
            found.append(process)
            with suppress(psutil.Error):
                found.extend(process.children(recursive=True))
    return found


def kill(processes: Iterable[psutil.Process]) -> None:
    """End them at once; psutil refuses if another process has the pid by now."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def end(record: Record, wait_s: float) -> bool:
    """End what the record names: politely, then by force. False if nothing of it lived."""
    everything = with_descendants([record.supervisor, *record.children.values()])
    leader = record.supervisor.process()
    children = [identity.process() for identity in record.children.values()]
    for process in [leader] if leader else children:  # the supervisor ends its children itself
        if process is not None:
            with suppress(psutil.Error):
                process.terminate()
    kill(wait_gone(everything, wait_s))
    wait_gone(everything, 2.0)
    return bool(everything)


def wait_gone(processes: Iterable[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Wait until all are gone; return those that are left. A zombie is gone: init may be slow."""
    until = time.monotonic() + limit_s
    left = [process for process in processes if _lives(process)]
    while left and time.monotonic() < until:
        time.sleep(0.02)
        left = [process for process in left if _lives(process)]
    return left


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
