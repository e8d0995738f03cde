"""What a laptop's power makes of an agent: the policy, and how the file says it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_agent.config_file import ConfigError, parse_config
from local_agent.power_policy import (
    AWAKE_AGAIN_S,
    COOL_S,
    GOING_TO_SLEEP,
    HostPower,
    PowerCore,
    PowerPolicy,
    Verdict,
)
from shared.contracts.agents import LidState, Power, PowerSource, Thermal


def seen(
    source: PowerSource = "ac",
    percent: int | None = None,
    thermal: Thermal = "nominal",
    lid: LidState = "open",
    *,
    sleeps_by_lid: bool | None = True,
) -> HostPower:
    power = Power(source=source, battery_percent=percent, thermal=thermal, lid=lid)
    return HostPower(power=power, sleeps_by_lid=sleeps_by_lid)


def reasons(policy: PowerPolicy, *readings: HostPower, every_s: float = 5.0) -> list[str | None]:
    core = PowerCore()
    return [
        core.advance(policy, reading, number * every_s).reason
        for number, reading in enumerate(readings)
    ]


@pytest.mark.parametrize(
    ("on_battery", "verdict"),
    [
        ("serve", Verdict()),
        ("limit", Verdict(limit=1)),
        ("drain", Verdict(reason="it runs on battery")),
    ],
)
def test_on_battery_the_owner_decides(on_battery: str, verdict: Verdict) -> None:
    policy = PowerPolicy(on_battery=on_battery)  # type: ignore[arg-type] # by name
    assert PowerCore().advance(policy, seen("battery", 80), 0.0) == verdict
    others: list[PowerSource] = ["ac", "unknown"]
    for source in others:
        assert PowerCore().advance(policy, seen(source, 80), 0.0) == Verdict()


def test_a_battery_at_its_floor_has_to_be_charged_again() -> None:
    low = "the battery is at 10 %"
    readings = [seen("battery", 11), seen("battery", 10), seen("battery", 12), seen("battery", 15)]
    assert reasons(PowerPolicy(), *readings) == [None, low, "the battery is at 12 %", None]
    assert reasons(PowerPolicy(), seen("battery", 10), seen("ac", 10)) == [low, None]


def test_without_a_floor_or_a_percentage_no_battery_is_low() -> None:
    assert reasons(PowerPolicy(battery_floor=0), seen("battery", 1)) == [None]
    assert reasons(PowerPolicy(), seen("battery", None)) == [None]


def test_heat_has_to_be_over_for_a_minute() -> None:
    hot, fair = seen(thermal="critical"), seen(thermal="fair")
    found = reasons(PowerPolicy(), fair, hot, fair, fair, every_s=COOL_S / 2 + 1)
    assert found == [None, "the machine is too hot", "the machine is too hot", None]


@pytest.mark.parametrize(
    ("most", "drains_at"),
    [
        ("nominal", ["fair", "serious", "critical"]),
        ("serious", ["critical"]),
        ("critical", []),
    ],
)
def test_how_warm_it_may_be(most: Thermal, drains_at: list[str]) -> None:
    levels: list[Thermal] = ["unknown", "nominal", "fair", "serious", "critical"]
    policy = PowerPolicy(max_thermal=most)
    found = [level for level in levels if reasons(policy, seen(thermal=level))[0] is not None]
    assert found == drains_at


@pytest.mark.parametrize(
    ("reading", "is_drained"),
    [
        (seen(lid="closed"), True),
        (seen(lid="closed", sleeps_by_lid=False), False),  # with an external display it goes on
        (seen(lid="closed", sleeps_by_lid=None), False),  # nobody knows: not assumed
        (seen(lid="open"), False),
    ],
)
def test_a_closed_lid(reading: HostPower, is_drained: bool) -> None:
    expected = "the lid is closed" if is_drained else None
    assert reasons(PowerPolicy(), reading) == [expected]
    assert reasons(PowerPolicy(drain_before_sleep=False), reading) == [None]


def test_a_host_that_was_said_to_sleep_is_drained_until_it_is_said_to_be_awake() -> None:
    core, policy = PowerCore(), PowerPolicy()
    core.go(100.0)
    assert core.advance(policy, seen(), 100.0).reason == GOING_TO_SLEEP
    assert core.advance(PowerPolicy(drain_before_sleep=False), seen(), 101.0).reason is None
    core.wake()
    assert core.advance(policy, seen(), 102.0).reason is None


def test_a_wake_that_nobody_announced_is_seen_by_the_time_awake() -> None:
    core = PowerCore()
    core.go(100.0)
    almost = core.advance(PowerPolicy(), seen(), 100.0 + AWAKE_AGAIN_S - 1)
    assert almost.reason == GOING_TO_SLEEP
    assert core.advance(PowerPolicy(), seen(), 100.0 + AWAKE_AGAIN_S).reason is None


@given(
    st.lists(st.sampled_from(["ac", "unknown"]), min_size=1),
    st.sampled_from(["serve", "limit", "drain"]),
)
def test_what_is_unknown_holds_nothing_up(sources: list[str], on_battery: str) -> None:
    policy = PowerPolicy(on_battery=on_battery)  # type: ignore[arg-type] # by name
    unknown = [
        HostPower(power=Power(source=source)) for source in sources  # type: ignore[arg-type] # by name
    ]
    assert set(reasons(policy, *unknown)) == {None}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{on_battery: sometimes}", "on_battery"),
        ("{battery_floor: 120}", "battery_floor"),
        ("{max_thermal: unknown}", "max_thermal"),
        ("{on_batery: drain}", "on_batery"),
    ],
)
def test_a_wrong_policy_is_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config(f"power: {text}\n", {}, name="agent.yaml", base=Path("/"))


def test_the_policy_of_the_file() -> None:
    text = "power: {on_battery: limit, battery_floor: 20, max_thermal: fair}\n"
    policy = parse_config(text, {}, name="agent.yaml", base=Path("/")).power.policy
    assert policy == PowerPolicy(on_battery="limit", battery_floor=20, max_thermal="fair")
