"""Sleep as a real D-Bus announces it: `gdbus` and `systemd-inhibit` on a bus where this test plays logind."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import anyio
import pytest

from local_agent.host.sleep import LogindSleep
from tests.integration.stack import missing
from tests.local_agent.harness import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="logind is Linux's"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="dbus-fast needs Python 3.11"),
]
LOGIN, PATH = "org.freedesktop.login1", "/org/freedesktop/login1"
BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>
"""


@pytest.fixture
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a bus of this test's own."""
    for program in ("dbus-daemon", "gdbus", "systemd-inhibit"):
        if shutil.which(program) is None:
            missing(f"{program}: apt-get install dbus libglib2.0-bin systemd")
    if find_spec("dbus_fast") is None:
        missing("dbus-fast: make setup-dev")
    folder = tmp_path_factory.mktemp("bus")
    config, socket = folder / "bus.conf", folder / "socket"
    config.write_text(BUS.format(socket=socket))
    argv = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile", "--print-address"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        yield daemon.stdout.readline().strip()
        daemon.terminate()


class Logind:
    """Logind, as far as sleep goes: whose inhibitors are held, and what it says."""

    def __init__(self, most_us: int) -> None:
        self.most_us = most_us
        self.asked: list[tuple[str, str, str]] = []
        self.held: set[int] = set()
        self._connection: Any = None
        self._manager: Any = None

    async def start(self, address: str) -> None:
        # a module that Python 3.10 and macOS do not have
        from dbus_fast.aio import MessageBus  # noqa: PLC0415

        from tests.integration.logind_manager import Manager  # noqa: PLC0415

        self._connection = await MessageBus(bus_address=address, negotiate_unix_fd=True).connect()
        self._manager = Manager(self.most_us, self._inhibit)
        self._connection.export(PATH, self._manager)
        await self._connection.request_name(LOGIN)

    def _inhibit(self, what: str, who: str, mode: str) -> int:
        """Give one end of a pipe away; the inhibitor is held until nobody has it any more."""
        mine, theirs = os.pipe()
        self.asked.append((what, who, mode))
        self.held.add(mine)
        loop = asyncio.get_running_loop()
        loop.add_reader(mine, self._released, mine)
        loop.call_later(0.5, os.close, theirs)  # by then its copy was sent
        return theirs

    def _released(self, mine: int) -> None:
        asyncio.get_running_loop().remove_reader(mine)
        os.close(mine)
        self.held.discard(mine)

    def say(self, *, is_going: bool) -> None:
        self._manager.PrepareForSleep(is_going)

    def stop(self) -> None:
        self._connection.disconnect()


async def test_logind_waits_for_the_agent_and_hears_of_it_again(bus: str) -> None:
    logind = Logind(3_000_000)
    told: list[str] = []
    env = {"PATH": os.defpath, "DBUS_SYSTEM_BUS_ADDRESS": bus}
    done = anyio.Event()

    async def going(limit_s: float) -> None:
        told.append(f"going {limit_s}")
        assert logind.held
        await done.wait()

    async def back() -> None:
        told.append("back")

    def has_told(times: int) -> bool:
        return told == ["going 2.5", "back"] * times

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(LogindSleep(env).listen, going, back)
        await logind.start(bus)  # the agent may be there before
        for number in (1, 2):
            await until(lambda: logind.held)
            logind.say(is_going=True)
            await until(lambda: told[-1:] == ["going 2.5"])
            assert logind.held
            done.set()
            await until(lambda: not logind.held)
            logind.say(is_going=False)
            await until(partial(has_told, number))
            done = anyio.Event()
        await until(lambda: logind.held)
        tasks.cancel_scope.cancel()
    await until(lambda: not logind.held)
    assert set(logind.asked) == {("sleep", "iir-agent", "delay")}
    logind.stop()
