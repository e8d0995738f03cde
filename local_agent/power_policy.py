"""Whether the agent takes work, by what its host runs on: pure, with time as an argument.

What is unknown holds nothing up: it is neither a battery, nor heat, nor a closed lid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.contracts.agents import Power, Thermal

OnBattery = Literal["serve", "limit", "drain"]

BATTERY_FLOOR = 10
GOING_TO_SLEEP = "the machine is about to sleep"
AWAKE_AGAIN_S = 60.0
"""So long after the word that the host sleeps, by a clock that stands still in sleep, it is awake again,
whether or not that was announced too."""
COOL_S = 60.0
"""For how long it has to be cool enough again: a machine that stopped working cools within seconds."""

_CHARGED_BY = 5
_LIMIT = 1
_RANKS: dict[Thermal, int] = {"unknown": -1, "nominal": 0, "fair": 1, "serious": 2, "critical": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerPolicy:
    """What the owner wants; see `PowerConfig`."""

    on_battery: OnBattery = "serve"
    battery_floor: int = BATTERY_FLOOR
    max_thermal: Thermal = "serious"
    drain_before_sleep: bool = True
    keep_awake: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPower:
    """What was read of the host; `sleeps_by_lid` tells whether a closed lid makes it sleep, if known."""

    power: Power
    sleeps_by_lid: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows: why nothing new is taken, or how many requests at a time; None: as always."""

    reason: str | None = None
    limit: int | None = None


class PowerCore:
    """Judges one reading after the other; what it once drained for has to be clearly over."""

    def __init__(self) -> None:
        """Begin with a host of which nothing is known."""
        self._is_low = False
        self._hot_until: float | None = None
        self._going_since: float | None = None

    def is_going(self, now: float) -> bool:
        """Tell whether the host was said to go to sleep, and is not awake again."""
        since = self._going_since
        return since is not None and now - since < AWAKE_AGAIN_S

    def go(self, now: float) -> None:
        """Take the word that the host goes to sleep."""
        self._going_since = now

    def wake(self) -> None:
        """Take the word that it is awake."""
        self._going_since = None

    def advance(self, policy: PowerPolicy, seen: HostPower, now: float) -> Verdict:
        """Return what follows from a reading.

        Args:
            policy: what the owner wants, as it is now.
            seen: the reading.
            now: seconds of one monotonic clock.
        """
        power = seen.power
        is_on_battery = power.source == "battery"
        self._note_charge(policy, power)
        is_hot = self._is_hot(policy, power.thermal, now)
        if policy.drain_before_sleep and self.is_going(now):
            return Verdict(reason=GOING_TO_SLEEP)
        if policy.drain_before_sleep and power.lid == "closed" and seen.sleeps_by_lid:
            return Verdict(reason="the lid is closed")
        if self._is_low:
            return Verdict(reason=f"the battery is at {power.battery_percent} %")
        if is_on_battery and policy.on_battery == "drain":
            return Verdict(reason="it runs on battery")
        if is_hot:
            return Verdict(reason="the machine is too hot")
        is_limited = is_on_battery and policy.on_battery == "limit"
        return Verdict(limit=_LIMIT if is_limited else None)

    def _note_charge(self, policy: PowerPolicy, power: Power) -> None:
        percent = power.battery_percent
        if power.source != "battery" or percent is None or policy.battery_floor == 0:
            self._is_low = False
        elif percent <= policy.battery_floor:
            self._is_low = True
        elif percent >= policy.battery_floor + _CHARGED_BY:
            self._is_low = False

    def _is_hot(self, policy: PowerPolicy, thermal: Thermal, now: float) -> bool:
        if _RANKS[thermal] > _RANKS[policy.max_thermal]:
            self._hot_until = now + COOL_S
        if self._hot_until is not None and now >= self._hot_until:
            self._hot_until = None
        return self._hot_until is not None and policy.max_thermal != "critical"
