"""Reads what the host runs on, how warm it is, and its lid. What can't be known is `unknown`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from local_agent.host.macos import (
    parse_charge,
    parse_lid,
    parse_pressure_level,
    parse_speed_limit,
)
from local_agent.host.tools import Ask, ask, ask_mac
from local_agent.power_policy import HostPower
from shared.contracts.agents import LidState, Power, PowerSource

ReadPower = Callable[[], HostPower]
_PRESSURE = "com.apple.system.thermalpressurelevel"


def power_reader(platform: str) -> ReadPower:
    """Return what reads a host of this platform; it blocks for some ten milliseconds."""
    if platform == "darwin":
        return read_mac
    return read_linux if platform == "linux" else _read_nothing


def _read_nothing() -> HostPower:
    return HostPower(power=Power())


def read_mac(ask: Ask = ask) -> HostPower:
    """Read a Mac."""
    charge = parse_charge(ask_mac("pmset", "-g", "batt", ask=ask))
    lid = parse_lid(ask_mac("ioreg", "-r", "-k", "AppleClamshellState", "-d", "4", ask=ask))
    thermal = parse_speed_limit(ask_mac("pmset", "-g", "therm", ask=ask))
    if thermal == "unknown":
        thermal = parse_pressure_level(ask_mac("notifyutil", "-g", _PRESSURE, ask=ask))
    state: LidState = "unknown"
    if lid is not None:
        state = "closed" if lid.is_closed else "open"
    power = Power(source=charge.source, battery_percent=charge.percent, thermal=thermal, lid=state)
    return HostPower(power=power, sleeps_by_lid=None if lid is None else lid.causes_sleep)


def read_linux(root: Path = Path("/")) -> HostPower:
    """Read a Linux by sysfs and procfs: sysfs-class-power of the kernel's documentation.

    How warm it is has no state of its own there, and whether a lid makes it sleep is for logind to say.
    """
    supplies = sorted((root / "sys/class/power_supply").glob("*"))
    mains = [_text(one / "online") for one in supplies if _text(one / "type") in {"Mains", "USB"}]
    batteries = [
        one
        for one in supplies
        # the battery of a mouse is none of ours
        if _text(one / "type") == "Battery" and _text(one / "scope") != "Device"
    ]
    levels = [int(level) for one in batteries if (level := _text(one / "capacity")).isdecimal()]
    power = Power(
        source=_source(mains, [_text(one / "status") for one in batteries]),
        battery_percent=min(100, round(sum(levels) / len(levels))) if levels else None,
        lid=_lid(root),
    )
    return HostPower(power=power)


def _source(mains: list[str], statuses: list[str]) -> PowerSource:
    """Return what it runs on; a machine without battery, and without word of its supply, is unknown."""
    if "1" in mains or "Charging" in statuses:
        return "ac"
    if "Discharging" in statuses:
        return "battery"
    return "ac" if statuses and set(statuses) <= {"Full", "Not charging"} else "unknown"


def _lid(root: Path) -> LidState:
    words = [_text(one).split() for one in (root / "proc/acpi/button/lid").glob("*/state")]
    if ["state:", "closed"] in words:
        return "closed"
    return "open" if ["state:", "open"] in words else "unknown"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
