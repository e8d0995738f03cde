"""Questions to the operating system about processes, by psutil: the same on Linux and macOS."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from time import sleep

import psutil

from local_agent.process.environment import MARKER
from local_agent.process.records import Record
from shared.kit.clock import monotonic

_POLL_S = 0.02
_SAME_START_S = 2.0
"""Linux computes start times from the wall clock: it may move a little between two readings."""


def create_time(pid: int) -> float | None:
    """Return when the process started (seconds since 1970), None if it is gone or a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.create_time()
    except psutil.Error:
        return None


def birth(pid: int) -> str | None:
    """Return what tells a process from all that had its id before or will have it; None if it is gone.

    On Linux its start by the clock of the boot, which nobody can set, and the boot; elsewhere its start
    time, exactly. A zombie is gone.
    """
    if sys.platform != "linux":
        started = create_time(pid)
        return None if started is None else f"{started:.6f}"
    try:
        # the name, in brackets, may hold anything: see proc_pid_stat(5)
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else f"{boot}/{int(fields[19])}"


def is_leader(record: Record) -> bool:
    """Tell whether the recorded process still lives, and is no later one with its id."""
    if record.pid is None:
        return False
    if record.birth is not None:
        return birth(record.pid) == record.birth
    return record.create_time is not None and is_same(record.pid, record.create_time)


def has_owner(record: Record) -> bool:
    """Tell whether the agent that the record is of may still live."""
    now = birth(record.owner_pid)
    return now is not None and (
        now == record.owner_birth or is_same(record.owner_pid, record.owner_create_time)
    )


def is_same(pid: int, started: float) -> bool:
    """Tell whether `pid` still is the process that started then, and no later one."""
    now = create_time(pid)
    return now is not None and abs(now - started) <= _SAME_START_S


def group_is_gone(pgid: int) -> bool:
    """Tell whether no process of the group lives; zombies do not count."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # macOS answers so for a group of zombies: look at them
    return not members(pgid)


def members(pgid: int) -> list[psutil.Process]:
    """Return the living processes of a group."""
    found = (_member(pid, pgid) for pid in psutil.pids())
    return [process for process in found if process is not None]


def _member(pid: int, pgid: int) -> psutil.Process | None:
    try:
        is_in = os.getpgid(pid) == pgid and create_time(pid) is not None
        return psutil.Process(pid) if is_in else None
    except (ProcessLookupError, PermissionError, psutil.Error):
        return None


def left_behind(records: Iterable[Record]) -> dict[str, list[psutil.Process]]:
    """Return, by worker name, what still lives of the recorded processes.

    A process is ours if it carries the worker's marker; or if it has the leader's id and start
    time; or if it is in the group of such a leader. So a reused process id is never taken for one.
    """
    found: dict[str, list[psutil.Process]] = {}
    names = {record.marker: record.name for record in records}
    for process in _marked(names):
        found.setdefault(names[_marker(process)], []).append(process)
    for record in records:
        if record.pid is not None and is_leader(record):
            known = found.setdefault(record.name, [])
            known.extend(process for process in members(record.pid) if process not in known)
    return found


def marker(pid: int) -> str:
    """Return which worker's marker the process carries; empty if it has none or can't be asked."""
    try:
        return _marker(psutil.Process(pid))
    except psutil.Error:
        return ""


def _marked(markers: Collection[str]) -> list[psutil.Process]:
    if not markers:
        return []
    return [process for process in psutil.process_iter() if _marker(process) in markers]


def _marker(process: psutil.Process) -> str:
    try:
        if process.status() == psutil.STATUS_ZOMBIE or process.uids().real != os.getuid():
            return ""
        return process.environ().get(MARKER, "")
    except (psutil.Error, OSError):
        return ""


def end(processes: Collection[psutil.Process], grace_s: float) -> bool:
    """SIGTERM, then SIGKILL after `grace_s`; block until they are gone. Tell whether they are."""
    alive = list(processes)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            _signal(process, number)
        alive = _outlast(alive, grace_s)
    return not alive


def _outlast(processes: list[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Wait until all are gone, at most `limit_s`; return who is left.

    Not by psutil's `wait_procs`: it waits for zombies too, which some container's first process
    never clears away.
    """
    deadline = monotonic() + limit_s
    while True:
        alive = [process for process in processes if lives(process)]
        if not alive or monotonic() >= deadline:
            return alive
        sleep(_POLL_S)


def lives(process: psutil.Process) -> bool:
    """Tell whether it still runs: not a zombie, and not another one with its id."""
    try:
        # is_running compares start times: the id of a process that is gone may be taken again
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        return  # gone in the meantime
