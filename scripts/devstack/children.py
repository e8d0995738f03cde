"""The two services as children: started again when they die, ended together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from scripts.devstack.errors import ServiceEnded
from scripts.devstack.record import Identity, kill, with_descendants
from scripts.devstack.text import say, shown, tail

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
HEALTHY_S = 60.0
LOG_LIMIT = 5 * 1024 * 1024
GRACE_S = 4.0


class Child:
    """One service in a process group of its own; its output goes to its log."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self.name = name
        self.identity: Identity | None = None
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._first_pause_s = first_pause_s
        self._process: asyncio.subprocess.Process | None = None

    async def keep(self, changed: Callable[[], None], is_up: Callable[[], bool]) -> None:
        """Run it until cancelled; `changed` is called after each start.

        Raises `ServiceEnded` if it gives up by itself before the whole was up once.
        """
        pause_s = self._first_pause_s
        while True:
            started = time.monotonic()
            process = await self._start()
            changed()
            code = await process.wait()
            if code >= 0 and not is_up():
                raise ServiceEnded(
                    f"the {self.name} ended during its start (exit code {code}); "
                    f"the end of {shown(self._log)}:\n{tail(self._log)}"
                )
            if time.monotonic() - started > HEALTHY_S:
                pause_s = self._first_pause_s
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            say(
                f"the {self.name} ended ({how}); it starts again in {pause_s:.0f} s; log: {shown(self._log)}"
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _start(self) -> asyncio.subprocess.Process:
        with open_log(self._log) as log:
            process = await asyncio.create_subprocess_exec(
                *self._arguments,
                env=dict(self._environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        self._process = process
        with contextlib.suppress(psutil.NoSuchProcess):
            self.identity = Identity.of(process.pid)
        return process

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def kill_group(self) -> None:
        """End it, and all in its group, at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def wait(self) -> None:
        """Return when it is gone."""
        if self._process is not None:
            await self._process.wait()


def open_log(path: Path) -> BinaryIO:
    """Open a log for appending; a big one is put aside first, replacing the one before."""
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


async def stop(children: Sequence[Child], hurry: asyncio.Event, grace_s: float = GRACE_S) -> None:
    """End all children and whatever they started, within `grace_s`; at once when `hurry` is set."""
    identities = [child.identity for child in children if child.identity]
    family = with_descendants(identities)
    for child in children:
        child.terminate()
    gone: asyncio.Future[Any] = asyncio.gather(*(child.wait() for child in children))
    hurried: asyncio.Future[Any] = asyncio.ensure_future(hurry.wait())
    await asyncio.wait([gone, hurried], timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    family += with_descendants(identities)
    for child in children:
        child.kill_group()
    kill(family)
    await gone
