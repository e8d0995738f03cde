"""Reads what macOS's own tools print; pure functions, so that recorded outputs test them anywhere.

What a text does not say is None: no value is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PAGE = re.compile(r"page size of (\d+) bytes")
_PAGES = re.compile(r'^"?([A-Za-z][A-Za-z -]*?)"?:\s+(\d+)\.?\s*$', re.MULTILINE)
_SYSCTL = re.compile(r"^([A-Za-z_][\w.]*)(?:: ?| = )(.*)$")
_SWAP = re.compile(r"(total|used|free) = (\d+(?:\.\d+)?)([KMGT])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True, kw_only=True)
class VmStat:
    """What `vm_stat` tells, in bytes.

    `wired_bytes` can't be paged out: what Metal holds is in it. `compressor_bytes` is the room that
    compressed pages take, not what they hold.
    """

    page_bytes: int
    free_bytes: int
    active_bytes: int
    inactive_bytes: int
    speculative_bytes: int
    wired_bytes: int
    purgeable_bytes: int
    file_backed_bytes: int
    compressor_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapUsage:
    """What `sysctl vm.swapusage` tells, in bytes."""

    total_bytes: int
    used_bytes: int
    free_bytes: int


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
            page_bytes=size,
            free_bytes=pages["Pages free"],
            active_bytes=pages["Pages active"],
            inactive_bytes=pages["Pages inactive"],
            speculative_bytes=pages["Pages speculative"],
            wired_bytes=pages["Pages wired down"],
            purgeable_bytes=pages["Pages purgeable"],
            file_backed_bytes=pages["File-backed pages"],
            compressor_bytes=pages["Pages occupied by compressor"],
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


def parse_swap(value: str) -> SwapUsage | None:
    """Return what the value of `vm.swapusage` says; None if it is something else."""
    sizes = {
        name: round(float(number) * _UNITS[unit]) for name, number, unit in _SWAP.findall(value)
    }
    if sizes.keys() != {"total", "used", "free"}:
        return None
    return SwapUsage(total_bytes=sizes["total"], used_bytes=sizes["used"], free_bytes=sizes["free"])
