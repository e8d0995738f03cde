"""Laptop care: what is read of the host, and what the agent does then."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio
import psutil
import pytest

from local_agent.errors import AgentDraining
from local_agent.host.awake import Caffeinate, asleep_clock
from local_agent.host.power import power_reader, read_linux, read_mac
from local_agent.host.tools import MAC_TOOLS
from local_agent.intake import Intake
from local_agent.power_policy import HostPower, PowerPolicy
from shared.contracts.agents import Heartbeat, Power
from shared.http.errors import QueueFull
from tests.local_agent import macos_outputs as outputs
from tests.local_agent.harness import CHAT, MESSAGES, StartAgent, cli, until
from tests.local_agent.laptop import Laptop
from tests.local_agent.test_power_policy import seen

# -- what is read --------------------------------------------------------------------------------


def asked(**answers: str) -> Callable[[Sequence[str]], str | None]:
    def ask(argv: Sequence[str]) -> str | None:
        name = Path(argv[0]).name
        assert argv[0] == MAC_TOOLS[name]
        return answers.get("_".join([name, *argv[2:3]]) if name == "pmset" else name)

    return ask


def test_a_macbook_on_battery() -> None:
    found = read_mac(
        asked(
            pmset_batt=outputs.BATTERY,
            pmset_therm=outputs.THERM_APPLE_SILICON,
            notifyutil=outputs.PRESSURE_NOMINAL,
            ioreg=outputs.LID_CAUSES_SLEEP + outputs.LID_LINE.format("Yes"),
        )
    )
    assert found == seen("battery", 95, "nominal", "closed", sleeps_by_lid=True)


def test_an_intel_mac_tells_of_heat_itself() -> None:
    found = read_mac(
        asked(
            pmset_batt=outputs.AC_DESKTOP,
            pmset_therm=outputs.THERM_INTEL_HOT,
            notifyutil=outputs.PRESSURE_NOMINAL,
        )
    )
    assert found == seen("ac", None, "critical", "unknown", sleeps_by_lid=None)


def test_a_mac_whose_tools_tell_nothing() -> None:
    assert read_mac(asked()) == HostPower(power=Power())
    assert power_reader("freebsd")() == HostPower(power=Power())


def supply(root: Path, name: str, **values: str) -> None:
    folder = root / "sys/class/power_supply" / name
    folder.mkdir(parents=True)
    for key, value in values.items():
        (folder / key).write_text(f"{value}\n")


@pytest.mark.parametrize(
    ("supplies", "source", "percent"),
    [
        ({"AC": {"type": "Mains", "online": "0"}, "BAT0": {"status": "Discharging", "capacity": "72"}}, "battery", 72),
        ({"AC": {"type": "Mains", "online": "1"}, "BAT0": {"status": "Charging", "capacity": "72"}}, "ac", 72),
        # https://github.com/wennaspeedy/batt_consumption_wattmetter/issues/1 (ThinkPad, held below full)
        ({"BAT0": {"status": "Not charging", "capacity": "94"}}, "ac", 94),
        ({"BAT0": {"status": "Unknown", "capacity": "50"}}, "unknown", 50),
        ({"BAT0": {"status": "Discharging", "capacity": "40"}, "BAT1": {"status": "Unknown", "capacity": "60"}}, "battery", 50),
        # the battery of a mouse
        ({"hid-1": {"status": "Discharging", "capacity": "3", "scope": "Device"}}, "unknown", None),
        ({}, "unknown", None),
    ],
)  # fmt: skip
def test_what_a_linux_runs_on(
    tmp_path: Path, supplies: Mapping[str, Mapping[str, str]], source: str, percent: int | None
) -> None:
    for name, values in supplies.items():
        supply(tmp_path, name, **{"type": "Battery", **values})
    found = read_linux(tmp_path)
    assert (found.power.source, found.power.battery_percent) == (source, percent)
    assert (found.power.thermal, found.sleeps_by_lid) == ("unknown", None)


@pytest.mark.parametrize("state", ["open", "closed"])
def test_the_lid_of_a_linux(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "proc/acpi/button/lid/LID0"
    folder.mkdir(parents=True)
    (folder / "state").write_text(f"state:      {state}\n")
    assert read_linux(tmp_path).power.lid == state
    assert read_linux(tmp_path / "elsewhere").power.lid == "unknown"


def test_a_host_that_does_not_sleep_has_not_slept() -> None:
    clock = asleep_clock()
    assert abs(clock() - clock()) < 0.5
    assert asleep_clock("freebsd")() == 0.0


# -- the intake ----------------------------------------------------------------------------------


def state(intake: Intake) -> str:
    """Return it as a text: a type checker remembers what a property once was."""
    return intake.state.value


def test_a_reason_of_the_host_refuses_what_is_new_and_resume_does_not_end_it() -> None:
    intake = Intake(lambda: None)
    with intake.work():
        intake.hold("it runs on battery")
        with pytest.raises(AgentDraining, match="it runs on battery"), intake.work():
            pass
        intake.resume()
        assert state(intake) == "draining"
    assert state(intake) == "drained"
    intake.hold(None)
    with intake.work():
        assert state(intake) == "ready"


def test_a_drain_by_command_outlives_a_reason_of_the_host() -> None:
    intake = Intake(lambda: None)
    intake.drain()
    intake.hold("the lid is closed")
    intake.hold(None)
    assert state(intake) == "drained"


def test_one_request_at_a_time() -> None:
    intake = Intake(lambda: None)
    intake.hold(None, limit=1)
    with intake.work(), pytest.raises(QueueFull, match="takes 1 at a time"), intake.work():
        pass
    with intake.work():
        assert state(intake) == "ready"


# -- the care ------------------------------------------------------------------------------------


def pid_of(awake: Caffeinate) -> int | None:
    return awake.pid


async def test_the_router_hears_at_once_of_what_matters() -> None:
    laptop = Laptop()
    assert await laptop.news()  # the first reading
    assert not await laptop.news()
    laptop.reading = seen("battery", 60)
    assert await laptop.news()
    laptop.reading = seen("battery", 59)
    assert not await laptop.news()
    assert laptop.care.power.battery_percent == 59
    laptop.reading = seen("battery", 9)
    assert await laptop.news()
    assert laptop.intake.reason == "the battery is at 9 %"
    laptop.policy = PowerPolicy(battery_floor=0)  # the file was changed
    assert await laptop.news()
    assert laptop.intake.reason is None


async def test_a_wake_is_told_even_if_nothing_else_changed() -> None:
    laptop = Laptop()
    await laptop.news()
    laptop.slept_s = 600.0
    assert await laptop.news()
    laptop.slept_s += 0.5  # clocks differ a little
    assert not await laptop.news()


async def test_a_defect_in_reading_holds_nothing_up() -> None:
    laptop = Laptop()
    laptop.reading = seen("battery", 5)
    await laptop.care.look()
    assert laptop.reason() is not None

    def broken() -> HostPower:
        raise ZeroDivisionError

    laptop.care._read = broken
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(laptop.care.run)
        with anyio.fail_after(30):
            await laptop.looks.wait()
        assert laptop.reason() is None
        tasks.cancel_scope.cancel()


async def test_it_is_kept_awake_only_while_there_is_work() -> None:
    laptop = Laptop()
    await laptop.care.look()
    assert not laptop.is_held()
    laptop.is_busy = True
    await laptop.care.look()
    assert laptop.is_held()
    laptop.policy = PowerPolicy(keep_awake=False)
    await laptop.care.look()
    assert not laptop.is_held()


async def test_an_agent_that_ends_lets_it_sleep() -> None:
    laptop = Laptop()
    laptop.is_busy = True
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(laptop.care.run)
        with anyio.fail_after(30):
            await laptop.looks.wait()
        assert laptop.is_held()
        tasks.cancel_scope.cancel()
    assert not laptop.is_held()


async def test_the_assertion_is_a_process_that_goes_with_the_work() -> None:
    awake = Caffeinate(("/bin/sh", "-c", "exec tail -f /dev/null"))
    await awake.hold()
    pid = pid_of(awake)
    assert pid is not None
    assert psutil.pid_exists(pid)
    await awake.hold()
    assert pid_of(awake) == pid
    await awake.release()
    assert pid_of(awake) is None
    assert not psutil.pid_exists(pid)
    await awake.release()


async def test_an_assertion_that_was_killed_is_made_again() -> None:
    awake = Caffeinate(("/bin/sh", "-c", "exec tail -f /dev/null"))
    await awake.hold()
    first = pid_of(awake)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: pid_of(awake) is None)
    await awake.hold()
    assert pid_of(awake) not in {None, first}
    await awake.release()


async def test_a_host_without_the_program_sleeps_when_it_wants() -> None:
    awake = Caffeinate(("/nowhere/caffeinate",))
    await awake.hold()
    assert pid_of(awake) is None
    await awake.release()


# -- the agent -----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_an_agent_tells_its_router_its_owner_and_its_clients(start_agent: StartAgent) -> None:
    async with start_agent({"id": "sim", "engine": "simulated"}) as agent:
        care = agent.agent._power
        care._read = lambda: seen("battery", 7, lid="open")
        await care.look()
        refused = await agent.client.post(CHAT, json={"model": "sim", "messages": MESSAGES})
        assert refused.status_code == 503
        assert "the battery is at 7 %" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 60
        told = (await agent.client.get("/internal/capacity")).json()
        assert (told["state"], told["reason"]) == ("drained", "the battery is at 7 %")
        assert told["power"] == {
            "source": "battery",
            "battery_percent": 7,
            "thermal": "nominal",
            "lid": "open",
        }
        shown = (await cli(agent, "ps")).output
        assert "power: battery (7 %), thermal nominal, lid open\n" in shown
        assert shown.endswith(
            "draining: the battery is at 7 %; nothing new is taken until that is over\n"
        )
        subject = agent.agent._subject
        assert (subject.state(), subject.reason()) == ("draining", "the battery is at 7 %")
        assert subject.power().battery_percent == 7


def test_an_older_router_reads_a_heartbeat_with_power() -> None:
    beat = Heartbeat(lease_id="l", incarnation=1, seq=1, power=Power(source="ac"), reason="heat")
    told = json.loads(beat.model_dump_json())
    assert told["power"]["source"] == "ac"
    del told["power"], told["reason"]
    assert Heartbeat.model_validate(told).power is None  # an older agent
