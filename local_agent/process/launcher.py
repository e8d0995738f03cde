"""Starts engines as processes in groups of their own, and ends such groups whole."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import uuid
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import psutil

from local_agent.domain import Unended
from local_agent.ports import Launch, Left, Wanted
from local_agent.process import tree
from local_agent.process.adoption import Seen, digest, why_not
from local_agent.process.environment import child_env
from local_agent.process.exits import Watch
from local_agent.process.log import TAIL_LINES, WorkerLog, cause_of, log_file
from local_agent.process.mask import Mask
from local_agent.process.records import Record, Records
from local_agent.process.remains import Remains, model_of, set_aside
from shared.kit.logs import get_logger

_POLL_S = 0.02


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LocalProcess:
    """A started engine: the leader of its process group, and whatever it started itself."""

    def __init__(
        self,
        pid: int,
        ended: Coroutine[Any, Any, int],
        *,
        record: Record,
        log: WorkerLog,
        records: Records,
        log_check_s: float,
        kill_wait_s: float,
        is_adopted: bool = False,
    ) -> None:
        self._record = record
        self._marker = record.marker
        self._log = log
        self._records = records
        self._log_check_s = log_check_s
        self._kill_wait_s = kill_wait_s
        self._pid = pid
        self._port = record.port
        self._is_adopted = is_adopted
        self._is_gone = False
        # one waiter for all: asyncio keeps every waiter of its own until the process ends
        self._exit = asyncio.ensure_future(ended)

    @property
    def pid(self) -> int:
        """Return the process id of the leader, which is the id of its group too."""
        return self._pid

    @property
    def host(self) -> str:
        """Return this host's own address: it is no other's business."""
        return "127.0.0.1"

    @property
    def port(self) -> int:
        """Return the port that it was told to listen on."""
        return self._port

    @property
    def is_adopted(self) -> bool:
        """Tell whether an earlier agent started it."""
        return self._is_adopted

    @property
    def exit_cause(self) -> str | None:
        """Return what the log of an adopted one tells; else None, exit code and log tell all."""
        if not (self._is_adopted and self._exit.done()):
            return None
        return cause_of(None, self._log.tail(TAIL_LINES))

    async def wait(self) -> int:
        """Return the leader's exit code (-1: unknown) once it has ended; bounds the log meanwhile."""
        while not self._exit.done():
            await asyncio.wait({self._exit}, timeout=self._log_check_s)
            self._log.trim()
        return self._exit.result()

    async def stop(self, grace_s: float) -> str | None:
        """SIGTERM to the whole group, SIGKILL after `grace_s`; return when all of it is gone.

        A process that not even SIGKILL ends (it hangs in the kernel) is left to the next agent:
        its record stays, and the text returned says so.
        """
        if self._is_gone:
            return None  # the id of the group may belong to another one by now
        for number, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, self._kill_wait_s)):
            self._signal(number)
            with anyio.move_on_after(limit_s):
                await self._gone()
                self._records.remove(self._record.name)
                return None
        with contextlib.suppress(OSError):  # a full disk: the model's next worker takes its place
            self._record = set_aside(self._records, self._record)
        return "leaked: its processes can't be ended and keep their memory"

    async def is_gone(self) -> bool:
        """Tell whether its group has ended; who has the group's id by then does not count."""
        return self._is_gone or not await anyio.to_thread.run_sync(self._has_group)

    def log_tail(self, lines: int) -> list[str]:
        """Return the last lines that it wrote."""
        return self._log.tail(lines)

    def _signal(self, number: signal.Signals) -> None:
        if self._is_adopted and self._exit.done() and not self._has_group():
            return
        try:
            os.killpg(self._pid, number)
        except (ProcessLookupError, PermissionError):
            return  # nobody is left; macOS says "not permitted" for a group of zombies

    def _has_group(self) -> bool:
        """Tell whether the group still is ours without its leader: the id may be another's by now."""
        return any(tree.marker(one.pid) == self._marker for one in tree.members(self._pid))

    async def _gone(self) -> None:
        await asyncio.wait({self._exit})
        # nothing tells when a grandchild ends: it has to be asked for
        while not tree.group_is_gone(self._pid):  # noqa: ASYNC110
            await anyio.sleep(_POLL_S)
        self._is_gone = True


class LocalProcessLauncher:
    """Starts processes and remembers them on disk, so that a later agent finds them."""

    def __init__(
        self,
        *,
        run_dir: Path,
        log_dir: Path,
        env: Mapping[str, str],
        interpreters: Mapping[str, str] | None = None,
        mask: Mask | None = None,
        max_log_bytes: int = 5_000_000,
        log_check_s: float = 1.0,
        kill_wait_s: float = 10.0,
        reap_grace_s: float = 5.0,
    ) -> None:
        """Take folders, which are made when needed, and the agent's own environment.

        Args:
            run_dir: where the pid files lie.
            log_dir: where the workers' logs lie.
            env: the agent's environment; children get little of it.
            interpreters: of the engines that have a Python environment of their own.
            mask: hides secrets in what is read from a log.
            max_log_bytes: a log over this is moved aside; one older part is kept.
            log_check_s: how often a log's size is looked at.
            kill_wait_s: how long a process may take to vanish after SIGKILL.
            reap_grace_s: time for orphans between SIGTERM and SIGKILL.
        """
        self._records = Records(run_dir)
        self._log_dir = log_dir
        self._env = env
        self._interpreters = {} if interpreters is None else interpreters
        self._mask = mask
        self._max_log_bytes = max_log_bytes
        self._log_check_s = log_check_s
        self._kill_wait_s = kill_wait_s
        self._reap_grace_s = reap_grace_s
        self._left: dict[str, Record] = {}
        self._remains = Remains(self._records)

    async def launch(
        self, name: str, launch: Launch, *, config_hash: str, port: int
    ) -> LocalProcess:
        """Start a process in a group of its own; its output goes to a bounded log file.

        The one that `left_running` has found is taken over instead, or ended first if it no longer fits.

        Raises:
            OSError: the program can't be started.
        """
        left = self._left.pop(name, None)
        if left is not None:
            adopted = self._adopted(left) if left.config_hash == config_hash else None
            if adopted is not None:
                return adopted
            await anyio.to_thread.run_sync(self._end, [left])
        marker = uuid.uuid4().hex
        log = self._log(name)
        record = self._owned(
            Record(
                name=name,
                marker=marker,
                config_hash=config_hash,
                port=port,
                launch=self._digest(launch, marker),
                owner_pid=0,
                owner_create_time=0.0,
            )
        )
        # before the start: an agent killed right after it must leave a trace of the child
        self._records.write(record)
        try:
            process = await self._spawn(launch, log, marker)
        except OSError:
            self._records.remove(name)
            raise
        pid = process.pid
        record = msgspec.structs.replace(
            record, pid=pid, create_time=tree.create_time(pid), birth=tree.birth(pid)
        )
        with contextlib.suppress(OSError):  # a full disk: the marker still finds the child
            self._records.write(record)
        return self._process(pid, process.wait(), record, log)

    async def left_running(self, wanted: Mapping[str, Wanted]) -> dict[str, Left]:
        """Return which processes of an agent that is gone are ours and still what is wanted."""
        return await anyio.to_thread.run_sync(self._look, wanted)

    async def reap_orphans(self, keep: Collection[str] = ()) -> list[str]:
        """End what an agent that is gone has left; return the names of what was ended.

        Workers of an agent that still lives are not orphans, this one's included.
        """
        self._left = {name: record for name, record in self._left.items() if name in keep}
        # chosen here and not in the thread: meanwhile they are taken over one by one
        return await anyio.to_thread.run_sync(self._reap, frozenset(self._left))

    async def unended(self) -> dict[str, Unended]:
        """See `ProcessLauncher.unended`."""
        return await anyio.to_thread.run_sync(self._remains.living)

    def _adopted(self, record: Record) -> LocalProcess | None:
        """Take over a process; None if it has ended meanwhile, or can't be recorded as ours."""
        assert record.pid is not None  # noqa: S101 - `why_not` asks for a living leader
        try:
            # first, so that what is checked next is what is watched
            watch = Watch(record.pid)
        except psutil.Error:
            return None
        try:
            if not tree.is_leader(record):
                raise ProcessLookupError
            owned = self._owned(record)
            self._records.write(owned)
        except OSError:
            watch.close()
            return None
        log = self._log(record.name)
        log.resume()
        get_logger("agent").info("process_adopted", worker=record.name)
        return self._process(record.pid, _unknown(watch), owned, log, is_adopted=True)

    def _process(
        self,
        pid: int,
        ended: Coroutine[Any, Any, int],
        record: Record,
        log: WorkerLog,
        *,
        is_adopted: bool = False,
    ) -> LocalProcess:
        return LocalProcess(
            pid,
            ended,
            record=record,
            log=log,
            records=self._records,
            log_check_s=self._log_check_s,
            kill_wait_s=self._kill_wait_s,
            is_adopted=is_adopted,
        )

    def _log(self, name: str) -> WorkerLog:
        return WorkerLog(log_file(self._log_dir, name), self._max_log_bytes, self._mask)

    def _owned(self, record: Record) -> Record:
        """Return the record as this agent's."""
        own = os.getpid()
        return msgspec.structs.replace(
            record,
            owner_pid=own,
            owner_create_time=tree.create_time(own) or 0.0,
            owner_birth=tree.birth(own),
        )

    def _program(self, launch: Launch) -> tuple[str, ...]:
        """Return what comes before the arguments; what is gone meanwhile can't be started."""
        return (self._interpreters.get(launch.environment, ""),) if launch.environment else ()

    def _digest(self, launch: Launch, marker: str) -> str:
        return digest(launch, self._program(launch), marker)

    def _look(self, wanted: Mapping[str, Wanted]) -> dict[str, Left]:
        self._left = {}
        for record in self._records.all():
            want = wanted.get(record.name)
            launch = None if want is None else want.launch(record.port)
            is_process = launch is not None and launch.container is None
            reason = why_not(
                record,
                Seen(
                    has_owner=tree.has_owner(record),
                    is_leader=tree.is_leader(record),
                    marker="" if record.pid is None else tree.marker(record.pid),
                ),
                None if want is None else want.config_hash,
                self._digest(launch, record.marker) if launch is not None and is_process else None,
            )
            if reason is None:
                self._left[record.name] = record
            else:
                get_logger("agent").info("process_not_kept", worker=record.name, reason=reason)
        return {name: Left(record.port, must_serve=True) for name, record in self._left.items()}

    async def _spawn(
        self, launch: Launch, log: WorkerLog, marker: str
    ) -> asyncio.subprocess.Process:
        program = (*self._program(launch), *launch.argv)
        if not program[0]:
            raise FileNotFoundError(errno.ENOENT, "its engine is not installed any more")
        output = log.open()
        try:
            return await asyncio.create_subprocess_exec(
                *program,
                stdin=DEVNULL,
                stdout=output,
                stderr=STDOUT,
                cwd=launch.cwd,
                env=child_env(self._env, launch.env, marker),
                start_new_session=True,
            )
        finally:
            os.close(output)

    def _reap(self, keep: Collection[str]) -> list[str]:
        return self._end(
            [
                record
                for record in self._records.all()
                if record.name not in keep and not tree.has_owner(record)
            ]
        )

    def _end(self, orphans: Sequence[Record]) -> list[str]:
        left = tree.left_behind(orphans)
        tree.end([process for group in left.values() for process in group], self._reap_grace_s)
        for record in orphans:
            alive = [one for one in left.get(record.name, ()) if tree.lives(one)]
            if alive:
                self._remains.note(record, alive)
            else:
                self._records.remove(record.name)
        return sorted({model_of(name) for name in left})


async def _unknown(watch: Watch) -> int:
    """Return -1 once the process has ended: only its parent gets its exit code."""
    await watch.ended()
    return -1
