"""Reads what macOS's own tools print; pure functions, so that recorded outputs test them anywhere.

What a text does not say is None: no value is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from shared.contracts.agents import PowerSource, Thermal

_PAGE = re.compile(r"page size of (\d+) bytes")
_PAGES = re.compile(r'^"?([A-Za-z][A-Za-z -]*?)"?:\s+(\d+)\.?\s*$', re.MULTILINE)
_SYSCTL = re.compile(r"^([A-Za-z_][\w.]*)(?:: ?| = )(.*)$")
_DRAWING = re.compile(r"^Now drawing from '([^']*)'", re.MULTILINE)
_CHARGE = re.compile(r"^\s*-InternalBattery-\d+.*?\s(\d{1,3})%;", re.MULTILINE)
_SPEED = re.compile(r"CPU_Speed_Limit\s*=\s*(\d+)")
_PRESSURE = re.compile(r"^com\.apple\.system\.thermalpressurelevel (\d+)\s*$", re.MULTILINE)
_FLAG = '"{name}" = (Yes|No)'
_CHIPSET = re.compile(r"^\s*Chipset Model: (.+?)\s*$", re.MULTILINE)
_METAL = re.compile(r"^\s*Metal(?: Support| Family)?: (.+?)\s*$", re.MULTILINE)
_XATTR = re.compile(r"^([\w.-]+#?\w*): ?(.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class VmStat:
    """What `vm_stat` tells, in bytes. `wired_bytes` can't be paged out: what Metal holds is in it."""

    free_bytes: int
    inactive_bytes: int
    speculative_bytes: int
    wired_bytes: int


def parse_vm_stat(text: str) -> VmStat | None:
    """Return what `vm_stat` printed; None if it is not that, or a count is missing.

    The size of a page stands in the first line: 16384 bytes on Apple Silicon, 4096 on Intel.
    """
    page = _PAGE.search(text)
    if page is None:
        return None
    size = int(page[1])
    pages = {name: int(count) * size for name, count in _PAGES.findall(text)}
    try:
        return VmStat(
            free_bytes=pages["Pages free"],
            inactive_bytes=pages["Pages inactive"],
            speculative_bytes=pages["Pages speculative"],
            wired_bytes=pages["Pages wired down"],
        )
    except KeyError:
        return None


def parse_sysctl(text: str) -> dict[str, str]:
    """Return the values by name that `sysctl NAME…` printed; names that it does not know are not there."""
    found = (_SYSCTL.match(line.rstrip()) for line in text.splitlines())
    return {line[1]: line[2].strip() for line in found if line is not None and line[1] != "sysctl"}


def sysctl_int(values: Mapping[str, str], name: str) -> int | None:
    """Return a whole number of `parse_sysctl`; None if it is not there, or is none."""
    value = values.get(name, "")
    return int(value) if re.fullmatch(r"-?\d+", value) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What the machine runs on; `percent` is None without a battery."""

    source: PowerSource
    percent: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lid:
    """The lid of a laptop.

    `causes_sleep` is No with an external display and power: then a closed lid means nothing.
    """

    is_closed: bool
    causes_sleep: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that macOS lists; `metal` is what it says of Metal, None if nothing."""

    name: str
    metal: str | None


def parse_charge(text: str) -> Charge:
    """Return what `pmset -g batt` printed.

    A desktop prints that it draws from AC, and no battery; a UPS is a battery here.
    """
    drawing, percent = _DRAWING.search(text), _CHARGE.search(text)
    source: PowerSource = "unknown"
    if drawing is not None:
        source = "ac" if drawing[1] == "AC Power" else "battery"
    return Charge(source=source, percent=None if percent is None else min(100, int(percent[1])))


def parse_speed_limit(text: str) -> Thermal:
    """Return the thermal state that `pmset -g therm` tells by its limit of the CPU's speed.

    Only Intel Macs give one. On Apple Silicon it says that nothing was recorded, however hot the machine is
    (https://github.com/exelban/stats/issues/749): that is `unknown`.
    """
    found = _SPEED.search(text)
    if found is None:
        return "unknown"
    limit = int(found[1])
    if limit >= 100:
        return "nominal"
    return "fair" if limit >= 80 else "serious" if limit >= 50 else "critical"


def parse_pressure_level(text: str) -> Thermal:
    """Return the thermal state that `notifyutil -g com.apple.system.thermalpressurelevel` tells.

    Its levels are those of `OSThermalNotification.h`: nominal, moderate, heavy, trapping, sleeping. A name
    that nobody ever posted reads 0 as well, so 0 is as much as macOS says, and no measurement
    (https://stanislas.blog/2025/12/macos-thermal-throttling-app).
    """
    found = _PRESSURE.search(text)
    if found is None:
        return "unknown"
    levels: dict[int, Thermal] = {0: "nominal", 1: "fair", 2: "serious"}
    return levels.get(int(found[1]), "critical")


def parse_lid(text: str) -> Lid | None:
    """Return what `ioreg -r -k AppleClamshellState` tells; None on a machine without a lid."""
    closed, sleeps = _flag(text, "AppleClamshellState"), _flag(text, "AppleClamshellCausesSleep")
    return None if closed is None else Lid(is_closed=closed, causes_sleep=sleeps)


def _flag(text: str, name: str) -> bool | None:
    found = re.search(_FLAG.format(name=name), text)
    return None if found is None else found[1] == "Yes"


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs that `system_profiler SPDisplaysDataType` printed; none in many virtual machines."""
    found = []
    starts = [match.start() for match in _CHIPSET.finditer(text)]
    for start, end in pairwise([*starts, len(text)]):
        part = text[start:end]
        name, metal = _CHIPSET.search(part), _METAL.search(part)
        if name is not None:
            found.append(Gpu(name=name[1], metal=None if metal is None else metal[1]))
    return tuple(found)


def parse_xattrs(text: str) -> dict[str, str]:
    """Return the extended attributes of one file that `xattr -l FILE` printed."""
    found = (_XATTR.match(line) for line in text.splitlines())
    return {line[1]: line[2].strip() for line in found if line is not None}


def quarantined_by(attributes: Mapping[str, str]) -> str | None:
    """Return which program put a file into quarantine, "" if that is not told; None if none did."""
    value = attributes.get("com.apple.quarantine")
    if value is None:
        return None
    fields = value.split(";")
    return fields[2].replace("\\x20", " ") if len(fields) > 2 else ""
