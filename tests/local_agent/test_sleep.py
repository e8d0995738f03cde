"""The word that the host will sleep: what macOS's and logind's mean, and who ends with the agent.

macOS itself is not here: its functions are C functions of this test's, called through `ctypes` both ways.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import anyio
import psutil
import pytest

from local_agent.host import mac_sleep, sleep
from local_agent.host.mac_sleep import SystemPower, hearing, obey
from local_agent.host.sleep import LogindSleep, MacSleep, sleep_news
from local_agent.process.tree import lives
from tests.local_agent.harness import ROOT, until

# -- macOS: the border to C ----------------------------------------------------------------------

POINTER, PORT = ctypes.c_void_p, ctypes.c_uint32
ROOT_PORT, NOTIFIER = 0xF00D, 0xBEEF
NOTIFY, SOURCE, LOOP, MODE = 0x7F0012345678, 0x7F0112345678, 0x7F0212345678, 0x7F0312345678
NUMBER = 0x7FFF12345678


class FakeMac:
    """IOKit and CoreFoundation as far as they are used; what is 64 bits wide needs all of them."""

    def __init__(self, root: int = ROOT_PORT) -> None:
        self.root = root
        self.calls: list[tuple[object, ...]] = []
        self.refcon: object = None
        self._callback = 0
        function = ctypes.CFUNCTYPE
        self.iokit = SimpleNamespace(
            IORegisterForSystemPower=function(PORT, POINTER, POINTER, POINTER, POINTER)(
                self._register
            ),
            IONotificationPortGetRunLoopSource=function(POINTER, POINTER)(self._source),
            IOAllowPowerChange=function(ctypes.c_int, PORT, ctypes.c_ssize_t)(self._allow),
        )
        self.foundation = SimpleNamespace(
            CFRunLoopGetCurrent=function(POINTER)(lambda: LOOP),
            CFRunLoopAddSource=function(None, POINTER, POINTER, POINTER)(self._add),
            CFRunLoopRun=function(None)(self._run),
        )

    def announce(self, message: int, number: int) -> None:
        """Call back as IOServiceInterestCallback is called."""
        kind = ctypes.CFUNCTYPE(None, POINTER, PORT, PORT, POINTER)
        kind(self._callback)(self.refcon, 0xABCD, message, number)

    def _register(self, refcon: int, port: int, callback: int, notifier: int) -> int:
        self.refcon, self._callback = refcon, callback
        POINTER.from_address(port).value = NOTIFY
        PORT.from_address(notifier).value = NOTIFIER
        return self.root

    def _source(self, port: int) -> int:
        self.calls.append(("source of", port))
        return SOURCE

    def _add(self, loop: int, source: int, mode: int) -> None:
        self.calls.append(("add", loop, source, mode))

    def _allow(self, root: int, number: int) -> int:
        self.calls.append(("allow", root, number))
        return 0

    def _run(self) -> None:
        self.announce(mac_sleep.WILL_SLEEP, NUMBER)


def test_addresses_and_numbers_cross_the_border_whole() -> None:
    mac = FakeMac()
    heard: list[tuple[int, int]] = []
    power = SystemPower(mac.iokit, mac.foundation, POINTER(MODE))
    assert power.register(lambda message, number: heard.append((message, number)))
    assert mac.calls == [("source of", NOTIFY), ("add", LOOP, SOURCE, MODE)]
    power.run()
    mac.announce(mac_sleep.HAS_POWERED_ON, 0)
    assert heard == [(0xE0000280, NUMBER), (0xE0000300, 0)]
    power.allow(NUMBER)
    assert mac.calls[-1] == ("allow", ROOT_PORT, NUMBER)


def test_a_mac_that_refuses() -> None:
    mac = FakeMac(root=0)
    assert not SystemPower(mac.iokit, mac.foundation, POINTER(MODE)).register(lambda *_: None)
    assert mac.calls == []


class FakeDomain:
    def __init__(self) -> None:
        self.allowed: list[int] = []

    def allow(self, number: int) -> None:
        self.allowed.append(number)


# the numbers are those of IOMessage.h
@pytest.mark.parametrize(
    ("message", "said", "allowed"),
    [
        (0xE0000270, [], [7]),  # it asks whether it may
        (0xE0000280, ["going 7"], []),  # it will, and waits
        (0xE0000290, ["woke"], []),  # it will not after all
        (0xE0000300, ["woke"], []),
        (0xE0000320, [], []),  # it begins to wake: must not be answered
        (0xE0000250, [], []),  # power off
    ],
)
def test_what_macos_is_answered(message: int, said: list[str], allowed: list[int]) -> None:
    domain = FakeDomain()
    heard: list[str] = []
    hearing(domain, heard.append)(message, 7)
    assert (heard, domain.allowed) == (said, allowed)


def test_a_mac_does_not_wait_for_an_agent_that_is_gone() -> None:
    domain = FakeDomain()

    def say(_line: str) -> None:
        raise BrokenPipeError

    hearing(domain, say)(mac_sleep.WILL_SLEEP, 7)
    assert domain.allowed == [7]


def test_only_numbers_are_obeyed() -> None:
    domain = FakeDomain()
    obey(domain, [f"{NUMBER}\n", "\n", "-1\n", "nonsense\n", "9\n"])
    assert domain.allowed == [NUMBER, 9]


# -- macOS: the program and who has started it ---------------------------------------------------


class Heard:
    """What was told, in its order; `going` may take its time."""

    def __init__(self, *, is_slow: bool = False) -> None:
        self.told: list[str] = []
        self.limits: list[float] = []
        self._is_slow = is_slow
        self.on_going: Callable[[], object] = lambda: None
        self.on_back: Callable[[], object] = lambda: None

    async def going(self, limit_s: float) -> None:
        self.told.append("going")
        self.limits.append(limit_s)
        if self._is_slow:
            await anyio.sleep_forever()
        await until(lambda: self.on_going() is not False)

    async def back(self) -> None:
        self.told.append("back")
        await until(lambda: self.on_back() is not False)


MAC = """
import sys
def say(line): print(line, flush=True)
say("listening")
say("woke")
say("going 281474976710655")
if sys.stdin.readline() == "281474976710655\\n":
    say("woke")
"""


@pytest.mark.parametrize("is_slow", [False, True])
async def test_a_mac_sleeps_once_the_agent_is_done_or_after_its_time(is_slow: bool) -> None:
    heard = Heard(is_slow=is_slow)
    news = MacSleep((sys.executable, "-c", MAC), limit_s=0.05 if is_slow else 20.0)
    assert await news.listen(heard.going, heard.back) is None
    assert heard.told == ["back", "going", "back"]


@pytest.mark.skipif(sys.platform == "darwin", reason="there it listens")
async def test_the_program_itself_says_that_this_is_no_mac() -> None:
    heard = Heard()
    told = await MacSleep().listen(heard.going, heard.back)
    assert told is not None
    assert told.startswith("macOS does not tell")


async def test_a_program_that_dies_at_once_tells_nothing() -> None:
    heard = Heard()
    told = await MacSleep((sys.executable, "-c", "")).listen(heard.going, heard.back)
    assert told == "its program ended"


# -- Linux ---------------------------------------------------------------------------------------

# recorded from gdbus 2.74 on a bus where somebody played logind; see tests/integration/test_sleep_bus.py
RECORDED = """\
Monitoring signals on object /org/freedesktop/login1 owned by org.freedesktop.login1
The name org.freedesktop.login1 is owned by :1.1
/org/freedesktop/login1: org.freedesktop.login1.Manager.SessionNew ('c1', objectpath '/org/freedesktop/login1/session/c1')
/org/freedesktop/login1: org.freedesktop.login1.Manager.PrepareForShutdown (true,)
/org/freedesktop/login1: org.freedesktop.login1.Manager.PrepareForSleep (true,)
/org/freedesktop/login1: org.freedesktop.login1.Manager.PrepareForSleep (false,)
"""
NOBODY = """\
Monitoring signals on object /org/freedesktop/login1 owned by org.freedesktop.login1
The name org.freedesktop.login1 does not have an owner
"""


class Linux:
    """A folder of programs in the place of GLib's and systemd's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pids = folder / "pids"
        self.env = {
            "PATH": f"{folder}:/usr/bin:/bin",
            "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere",
        }
        self.program("systemd-inhibit", f"echo $$ >> {self._pids}; exec cat")

    def program(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def gdbus(self, output: str, *, delay: str = "(<uint64 3000000>,)", then: str = "") -> None:
        (self.folder / "output").write_text(output)
        told = f"""if [ "$1" = call ]; then echo '{delay}'; exit; fi"""
        self.program("gdbus", f"{told}\ncat {self.folder / 'output'}\n{then}")

    def pids(self) -> list[int]:
        text = self._pids.read_text() if self._pids.exists() else ""
        return [int(line) for line in text.split()]

    def delays(self, number: int) -> bool:
        """Tell whether the delay of this number, from 1, is held now."""
        pids = self.pids()
        return len(pids) == number and is_alive(pids[-1])


def is_alive(pid: int) -> bool:
    try:
        return lives(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


async def test_logind_is_delayed_until_the_agent_is_done(tmp_path: Path) -> None:
    linux, heard = Linux(tmp_path), Heard()
    linux.gdbus(RECORDED)
    heard.on_going = lambda: linux.delays(1)
    heard.on_back = lambda: linux.delays(2)
    assert await LogindSleep(linux.env).listen(heard.going, heard.back) is None
    assert (heard.told, heard.limits) == (["going", "back"], [2.5])
    assert not any(is_alive(pid) for pid in linux.pids())


async def test_logind_does_not_wait_for_an_agent_that_is_slow(tmp_path: Path) -> None:
    linux, heard = Linux(tmp_path), Heard(is_slow=True)
    linux.gdbus(RECORDED, delay="(<uint64 550000>,)")
    await LogindSleep(linux.env).listen(heard.going, heard.back)
    assert heard.told == ["going", "back"]


async def test_an_unknown_delay_is_the_usual_one(tmp_path: Path) -> None:
    linux, heard = Linux(tmp_path), Heard()
    linux.gdbus(RECORDED, delay="Error: GDBus.Error: no such property")
    await LogindSleep(linux.env).listen(heard.going, heard.back)
    assert heard.limits == [4.5]


async def test_a_machine_in_a_bag_does_not_wait_for_ever(tmp_path: Path) -> None:
    linux, heard = Linux(tmp_path), Heard()
    linux.gdbus(RECORDED, delay="(<uint64 18446744073709551615>,)")  # InhibitDelayMaxSec=infinity
    await LogindSleep(linux.env).listen(heard.going, heard.back)
    assert heard.limits == [29.5]


def test_the_end_of_the_bus_is_heard_on_the_loop_that_agents_run_on(tmp_path: Path) -> None:
    linux, heard = Linux(tmp_path), Heard()
    linux.gdbus(RECORDED)

    async def listen() -> str | None:
        with anyio.fail_after(30):
            return await LogindSleep(linux.env).listen(heard.going, heard.back)

    assert anyio.run(listen, backend_options={"use_uvloop": True}) is None
    assert heard.told == ["going", "back"]


async def test_the_id_of_a_child_that_has_ended_is_not_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[int] = []
    process = await sleep._start((sys.executable, "-c", ""), None)
    await process.wait()
    monkeypatch.setattr(os, "killpg", lambda group, _number: killed.append(group))
    await sleep._end(process)
    assert killed == []


async def test_linuxes_that_announce_nothing_say_why(tmp_path: Path) -> None:
    linux, heard = Linux(tmp_path), Heard()

    async def why(**env: str) -> str:
        return str(await LogindSleep({**linux.env, **env}).listen(heard.going, heard.back))

    linux.gdbus(NOBODY)
    assert await why() == "logind is not on the system bus"
    linux.gdbus("")  # no bus at that address
    assert await why() == "logind is not on the system bus"
    assert "gdbus (of GLib) and systemd-inhibit are needed" in await why(PATH=str(tmp_path / "no"))
    assert heard.told == []
    assert await sleep_news("freebsd", {}).listen(heard.going, heard.back) is not None


LISTEN = """
import asyncio, json, sys
from local_agent.host.sleep import LogindSleep
async def nothing(*_): pass
asyncio.run(LogindSleep(json.loads(sys.argv[1])).listen(nothing, nothing))
"""


async def test_nothing_is_left_of_an_agent_that_was_killed(tmp_path: Path) -> None:
    linux = Linux(tmp_path)
    note = f"echo $$ >> {tmp_path / 'monitor'}; exec tail -f /dev/null"
    linux.gdbus("The name org.freedesktop.login1 is owned by :1.1\n", then=note)
    with subprocess.Popen(  # noqa: ASYNC220 - it goes on beside
        [sys.executable, "-c", LISTEN, json.dumps(linux.env)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    ) as agent:
        monitor = tmp_path / "monitor"
        await until(lambda: linux.delays(1) and monitor.exists() and monitor.read_text().strip())
        children = [*linux.pids(), int(monitor.read_text())]
        assert all(is_alive(pid) for pid in children)
        os.kill(agent.pid, signal.SIGKILL)
    await until(lambda: not any(is_alive(pid) for pid in children))
