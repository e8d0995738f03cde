"""Sleep: how long the host has slept, and keeping a Mac from falling asleep while there is work."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL
from contextlib import suppress

import anyio

from local_agent.host.tools import MAC_TOOLS
from shared.kit.clock import Clock, monotonic

_END_S = 2.0


def asleep_clock(platform: str = sys.platform) -> Clock:
    """Return a clock of the seconds that this host has slept since some time.

    It is the difference of a clock that goes on in sleep and one that does not: CLOCK_BOOTTIME on Linux,
    and on macOS CLOCK_MONOTONIC, against Python's monotonic clock (mach_absolute_time there). Setting the
    time of day moves none of them. A platform without such a clock never sleeps as far as it is known.
    """
    name = "CLOCK_BOOTTIME" if platform == "linux" else "CLOCK_MONOTONIC"
    clock = getattr(time, name, None)
    if clock is None or platform not in {"linux", "darwin"}:
        return lambda: 0.0
    return lambda: time.clock_gettime(clock) - monotonic()


class Caffeinate:
    """`KeepAwake` by macOS's own program: an assertion against idle sleep, which goes with the agent.

    A lid that is closed, the menu, and an empty battery still put the Mac to sleep.
    """

    def __init__(self, argv: tuple[str, ...] | None = None) -> None:
        """Take the program; default: `caffeinate -i`, which ends when this process does."""
        self._argv = argv or (MAC_TOOLS["caffeinate"], "-i", "-w", str(os.getpid()))
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Return the process that holds the assertion; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def hold(self) -> None:
        """See `KeepAwake.hold`."""
        if self.pid is not None:
            return
        with suppress(OSError):  # no such program: the Mac may sleep, and the doctor says so
            self._process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
            )

    async def release(self) -> None:
        """See `KeepAwake.release`."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        with anyio.move_on_after(_END_S, shield=True):
            await process.wait()
            return
        with suppress(ProcessLookupError):
            process.kill()


class NoAssertion:
    """`KeepAwake` where no program is known that could."""

    async def hold(self) -> None:
        """See `KeepAwake.hold`."""

    async def release(self) -> None:
        """See `KeepAwake.release`."""
