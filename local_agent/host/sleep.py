"""The system's word that the host will sleep: macOS's root power domain, systemd-logind's delay of sleep.

Both are heard by children of the agent, whose output is read line by line: nothing that the agent has to
install, and no foreign code in its own process. Each of them ends with its input, so with the agent, however
that ends.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from local_agent.host.tools import ask
from local_agent.ports import SleepNews

Going = Callable[[float], Awaitable[None]]
Back = Callable[[], Awaitable[None]]

_NO_ENVIRONMENT: Mapping[str, str] = {"LC_ALL": "C"}
_MAC_LIMIT_S = 20.0
"""macOS waits for 30 s, and for all programs: who makes it wait that long is a nuisance."""
_MAC_PROGRAM = Path(__file__).with_name("mac_sleep.py")

_BUS = "/run/dbus/system_bus_socket"
_LOGIN = ("--dest", "org.freedesktop.login1", "--object-path", "/org/freedesktop/login1")
_MANAGER = "org.freedesktop.login1.Manager"
_OWNED = re.compile(r"The name org\.freedesktop\.login1 is owned by ")
_SIGNAL = re.escape(f"/org/freedesktop/login1: {_MANAGER}.PrepareForSleep ")
_GOING, _BACK = re.compile(_SIGNAL + r"\(true,\)"), re.compile(_SIGNAL + r"\(false,\)")
_MICROSECONDS = re.compile(r"\(<(?:uint64 )?(\d+)>,\)")
# `gdbus` takes no notice of its input: who reads it instead ends all when the agent is gone, and is ended with
# it, since uvloop lets it inherit gdbus's output, whose end would not be seen. The group is this session's own.
# What a shell starts in the background has no input of its own, hence the 3.
_END_WITH_INPUT = (
    'exec 3<&0; (cat <&3; kill -9 0) >/dev/null 2>&1 & "$@" 3<&- </dev/null; kill -9 0'
)
_USUAL_DELAY_S = 5.0
_MARGIN_S = 0.5
_MOST_S = 30.0
"""As macOS: somebody may let logind wait for minutes, or for ever, and a machine in a bag must not."""


def sleep_news(platform: str, env: Mapping[str, str]) -> SleepNews:
    """Return what hears of sleep on this platform; `env` is the agent's environment."""
    if platform == "darwin":
        return MacSleep()
    return LogindSleep(env) if platform == "linux" else NoSleepNews()


class NoSleepNews:
    """`SleepNews` where nothing announces sleep that we know of."""

    async def listen(self, going: Going, back: Back) -> str | None:
        """See `SleepNews.listen`."""
        del going, back
        return "nothing is known that announces sleep on this system"


class MacSleep:
    """`SleepNews` by `mac_sleep.py`, in a process of its own."""

    def __init__(self, argv: Sequence[str] | None = None, limit_s: float = _MAC_LIMIT_S) -> None:
        """Take the program, and how long the Mac may have to wait."""
        self._argv = argv or (sys.executable, "-I", "-B", str(_MAC_PROGRAM))
        self._limit_s = limit_s

    async def listen(self, going: Going, back: Back) -> str | None:
        """See `SleepNews.listen`."""
        has_begun = False
        async with _child(self._argv, _NO_ENVIRONMENT) as child:
            async for line in _lines(child):
                word, _, rest = line.partition(" ")
                if word == "unheard":
                    return f"macOS does not tell: {rest}"
                has_begun = has_begun or word == "listening"
                if word == "going":
                    await _within(self._limit_s, going)
                    await _tell(child, rest)
                elif word == "woke":
                    await back()
        return None if has_begun else "its program ended"


class LogindSleep:
    """`SleepNews` by logind: its signal `PrepareForSleep`, and a delay for as long as we have to do.

    Both by programs that come with systemd and GLib (`systemd-inhibit`, `gdbus`); logind's contract is
    https://systemd.io/INHIBITOR_LOCKS/. It waits for `InhibitDelayMaxSec`, which is 5 s if nobody has set it.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        """Take the agent's environment: where programs lie, and where the bus is."""
        self._path, self._bus = env.get("PATH"), env.get("DBUS_SYSTEM_BUS_ADDRESS")
        self._env = {"LC_ALL": "C", "PATH": self._path or "/usr/bin:/bin"}
        if self._bus is not None:
            self._env["DBUS_SYSTEM_BUS_ADDRESS"] = self._bus

    async def listen(self, going: Going, back: Back) -> str | None:
        """See `SleepNews.listen`."""
        if self._bus is None and not await anyio.Path(_BUS).exists():
            return "there is no system bus (D-Bus)"
        gdbus, inhibit = (
            shutil.which(name, path=self._path) for name in ("gdbus", "systemd-inhibit")
        )
        if gdbus is None or inhibit is None:
            return "gdbus (of GLib) and systemd-inhibit are needed, and one of them is not there"
        delay = _Delay(inhibit, self._env)
        try:
            is_known = await self._follow(gdbus, delay, going, back)
        finally:
            await delay.release()
        return None if is_known else "logind is not on the system bus"

    async def _follow(self, gdbus: str, delay: _Delay, going: Going, back: Back) -> bool:
        """Follow what logind says, to the end; tell whether there was one."""
        is_known, limit_s = False, 0.0
        monitor = ("/bin/sh", "-c", _END_WITH_INPUT, "sh", gdbus, "monitor", "--system", *_LOGIN)
        async with _child(monitor, self._env) as child:
            async for line in _lines(child):
                if _OWNED.match(line):
                    is_known = True
                    await delay.take()
                    delay_s = min(await self._delay_s(gdbus), _MOST_S)
                    limit_s = max(0.0, delay_s - _MARGIN_S)
                elif _GOING.match(line):
                    await _within(limit_s, going)
                    await delay.release()
                elif _BACK.match(line):
                    await delay.take()
                    await back()
        return is_known

    async def _delay_s(self, gdbus: str) -> float:
        """Return how long logind waits at most."""
        words = ("--method", "org.freedesktop.DBus.Properties.Get", _MANAGER, "InhibitDelayMaxUSec")
        argv = (gdbus, "call", "--system", *_LOGIN, *words)
        said = await anyio.to_thread.run_sync(partial(ask, argv, env=self._env))
        found = _MICROSECONDS.match(said or "")
        return _USUAL_DELAY_S if found is None else int(found[1]) / 1e6


class _Delay:
    """An inhibitor of logind's, of the kind that delays; it goes with the process that holds it."""

    def __init__(self, program: str, env: Mapping[str, str]) -> None:
        why = "The agent finishes what it has, and leaves its router"
        self._argv = (program, "--what=sleep", "--mode=delay", "--who=iir-agent", f"--why={why}")
        self._env = env
        self._process: Process | None = None

    async def take(self) -> None:
        """Have the next sleep delayed; where that is refused it comes without delay."""
        if self._process is None or self._process.returncode is not None:
            with suppress(OSError):
                self._process = await _start((*self._argv, "cat"), self._env)

    async def release(self) -> None:
        """Let the host sleep."""
        process, self._process = self._process, None
        if process is not None:
            await _end(process)


@asynccontextmanager
async def _child(
    argv: Sequence[str], env: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    process = await _start(argv, env)
    try:
        yield process
    finally:
        await _end(process)


async def _start(argv: Sequence[str], env: Mapping[str, str] | None) -> Process:
    """Start a program that ends when this process does: its input is a pipe of ours."""
    return await asyncio.create_subprocess_exec(
        *argv, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=env, start_new_session=True
    )


async def _end(process: Process) -> None:
    """End it, and whatever it has started."""
    assert process.stdin is not None  # noqa: S101 - it was asked for
    process.stdin.close()
    if process.returncode is None:  # else its id may be another one's by now
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with anyio.CancelScope(shield=True):
        await process.wait()


async def _lines(process: Process) -> AsyncIterator[str]:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    async for line in process.stdout:
        yield line.decode(errors="replace").strip()


async def _within(limit_s: float, going: Going) -> None:
    with anyio.move_on_after(limit_s):
        await going(limit_s)


async def _tell(process: Process, line: str) -> None:
    assert process.stdin is not None  # noqa: S101 - it was asked for
    with suppress(OSError):  # it has ended: then nobody waits for us
        process.stdin.write(f"{line}\n".encode())
        await process.stdin.drain()
