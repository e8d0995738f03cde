"""Starts engines as processes in groups of their own, and ends such groups whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import uuid
from asyncio.subprocess import DEVNULL, STDOUT
from collections.abc import Collection, Mapping
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from local_agent.ports import Launch
from local_agent.process import tree
from local_agent.process.environment import child_env
from local_agent.process.log import WorkerLog, log_file
from local_agent.process.mask import Mask
from local_agent.process.records import Record, Records

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
        process: asyncio.subprocess.Process,
        *,
        name: str,
        port: int,
        log: WorkerLog,
        records: Records,
        log_check_s: float,
        kill_wait_s: float,
    ) -> None:
        self._name = name
        self._log = log
        self._records = records
        self._log_check_s = log_check_s
        self._kill_wait_s = kill_wait_s
        self._pid = process.pid
        self._port = port
        self._is_gone = False
        # one waiter for all: asyncio keeps every waiter of its own until the process ends
        self._exit = asyncio.ensure_future(process.wait())

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
    def exit_cause(self) -> None:
        """Return None: exit code and log tell all that is known."""

    async def wait(self) -> int:
        """Return the leader's exit code once it has ended; bounds the log meanwhile."""
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
                self._records.remove(self._name)
                return None
        return "leaked: its processes can't be ended and keep their memory"

    def log_tail(self, lines: int) -> list[str]:
        """Return the last lines that it wrote."""
        return self._log.tail(lines)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._pid, number)
        except (ProcessLookupError, PermissionError):
            return  # nobody is left; macOS says "not permitted" for a group of zombies

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
        self._interpreters = interpreters or {}
        self._mask = mask
        self._max_log_bytes = max_log_bytes
        self._log_check_s = log_check_s
        self._kill_wait_s = kill_wait_s
        self._reap_grace_s = reap_grace_s

    async def launch(
        self, name: str, launch: Launch, *, config_hash: str, port: int
    ) -> LocalProcess:
        """Start a process in a group of its own; its output goes to a bounded log file.

        Raises:
            OSError: the program can't be started.
        """
        marker = uuid.uuid4().hex
        log = WorkerLog(log_file(self._log_dir, name), self._max_log_bytes, self._mask)
        record = Record(
            name=name,
            marker=marker,
            config_hash=config_hash,
            port=port,
            owner_pid=os.getpid(),
            owner_create_time=tree.create_time(os.getpid()) or 0.0,
        )
        # before the start: an agent killed right after it must leave a trace of the child
        self._records.write(record)
        try:
            process = await self._spawn(launch, log, marker)
        except OSError:
            self._records.remove(name)
            raise
        started = tree.create_time(process.pid)
        with contextlib.suppress(OSError):  # a full disk: the marker still finds the child
            self._records.write(
                msgspec.structs.replace(record, pid=process.pid, create_time=started)
            )
        return LocalProcess(
            process,
            name=name,
            port=port,
            log=log,
            records=self._records,
            log_check_s=self._log_check_s,
            kill_wait_s=self._kill_wait_s,
        )

    async def left_running(self, wanted: Mapping[str, str]) -> list[str]:
        """Return nothing: a process that an earlier agent left is ended, since its exit is unknown to us."""
        del wanted
        return []

    async def reap_orphans(self, keep: Collection[str] = ()) -> list[str]:
        """End what an agent that is gone has left; return the names of what was ended.

        Workers of an agent that still lives are not orphans, this one's included.
        """
        del keep
        return await anyio.to_thread.run_sync(self._reap)

    async def _spawn(
        self, launch: Launch, log: WorkerLog, marker: str
    ) -> asyncio.subprocess.Process:
        program = (self._interpreters[launch.environment],) if launch.environment else ()
        output = log.open()
        try:
            return await asyncio.create_subprocess_exec(
                *(*program, *launch.argv),
                stdin=DEVNULL,
                stdout=output,
                stderr=STDOUT,
                cwd=launch.cwd,
                env=child_env(self._env, launch.env, marker),
                start_new_session=True,
            )
        finally:
            os.close(output)

    def _reap(self) -> list[str]:
        orphans = [
            record
            for record in self._records.all()
            if not tree.is_same(record.owner_pid, record.owner_create_time)
        ]
        left = tree.left_behind(orphans)
        processes = [process for group in left.values() for process in group]
        are_gone = tree.end(processes, self._reap_grace_s)
        for record in orphans:
            if are_gone or record.name not in left:
                self._records.remove(record.name)
        return sorted(left)
