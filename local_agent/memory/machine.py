"""What the machine itself has left, whatever the ledger says: other programs take memory too. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from local_agent.domain import Guard
from local_agent.host.macos import parse_sysctl, parse_vm_stat, sysctl_int

FREE_PERCENT = "kern.memorystatus_level"
PRESSURE_LEVEL = "kern.memorystatus_vm_pressure_level"
_CRITICAL_LEVEL = 4
_CRITICAL_STALL_PERCENT = 20.0
_PSI = re.compile(r"^full avg10=(\d{1,3}\.\d{2}) ", re.MULTILINE)
_MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineMemory:
    """The machine's memory at one moment, in MiB.

    `available_mb` can be had without swapping: on a Mac what is neither wired nor compressed, as the
    kernel counts it. `idle_mb` can be had without pushing anything of other programs aside. `wired_mb` can't
    be paged out, what Metal holds is in it; only macOS tells. `is_critical`: the system itself says that
    it is short.
    """

    available_mb: int
    idle_mb: int
    wired_mb: int | None = None
    is_critical: bool = False


def of_linux(available_mb: int, psi: str) -> MachineMemory:
    """Return what Linux tells.

    Args:
        available_mb: `MemAvailable`, the kernel's own word for what can be had without swapping.
        psi: the text of `/proc/pressure/memory` (https://docs.kernel.org/accounting/psi.html); empty
            where there is none. It is critical when all tasks stood still for a fifth of the last 10 s.
    """
    stalled = _PSI.search(psi)
    is_critical = stalled is not None and float(stalled[1]) >= _CRITICAL_STALL_PERCENT
    return MachineMemory(available_mb=available_mb, idle_mb=available_mb, is_critical=is_critical)


def of_macos(total_mb: int, vm_stat: str, sysctl: str) -> MachineMemory | None:
    """Return what macOS tells; None if it tells too little.

    `kern.memorystatus_level` is the free percentage that `memory_pressure` prints.
    `kern.memorystatus_vm_pressure_level` is 1, 2 or 4 (normal, warning, critical:
    https://github.com/giampaolo/psutil/issues/2725); the warning comes with half of the memory free
    (https://github.com/exelban/stats/issues/318), so only 4 counts.

    Args:
        total_mb: the Mac's memory.
        vm_stat: what `vm_stat` printed.
        sysctl: what `sysctl` printed for the two names.
    """
    pages, values = parse_vm_stat(vm_stat), parse_sysctl(sysctl)
    if pages is None:
        return None
    idle = pages.free_bytes + pages.inactive_bytes + pages.speculative_bytes
    percent = sysctl_int(values, FREE_PERCENT)
    is_known = percent is not None and 0 <= percent <= 100
    available_mb = total_mb * (percent or 0) // 100 if is_known else idle // _MIB
    return MachineMemory(
        available_mb=available_mb,
        idle_mb=min(available_mb, idle // _MIB),
        wired_mb=pages.wired_bytes // _MIB,
        is_critical=sysctl_int(values, PRESSURE_LEVEL) == _CRITICAL_LEVEL,
    )


class MachineRoom:
    """How much of its memory the machine can give to another worker now.

    `guard`: with `off` the ledger alone decides. With `normal` a load waits as long as the machine has
    not what the model takes, or says itself that it is short. With `strict` that has to be there without
    pushing other programs aside, and beyond the `reserve_mb` that is left to them.
    """

    def __init__(self, guard: Guard = "normal", reserve_mb: int = 0) -> None:
        """Know nothing of the machine yet: until it tells, nothing waits for it."""
        self.guard: Guard = guard
        self.reserve_mb = reserve_mb
        self.memory: MachineMemory | None = None

    def free_mb(self, coming_mb: int) -> int | None:
        """Return what can be given; None if the machine sets no limit.

        Args:
            coming_mb: what workers will take that have begun to load, less what others gave back, as far
                as `memory` does not show it yet. A machine that is short has only what was given back.
        """
        if self.memory is None or self.guard == "off":
            return None
        if self.memory.is_critical:
            return max(0, -coming_mb)
        if self.guard == "strict":
            return max(0, self.memory.idle_mb - self.reserve_mb - coming_mb)
        return max(0, self.memory.available_mb - coming_mb)

    def shortage(self, needs_mb: int, coming_mb: int) -> str | None:
        """Say in words why the machine can't give so much now; None if it can."""
        free_mb = self.free_mb(coming_mb)
        if self.memory is None or free_mb is None or needs_mb <= free_mb:
            return None
        if self.memory.is_critical:
            has = "says itself that it is short of memory"
        elif self.guard == "strict":
            has = (
                f"has {self.memory.idle_mb} MiB unused, of which {self.reserve_mb} MiB are left to"
                " other programs"
            )
        else:
            has = f"has {self.memory.available_mb} MiB available"
        loading = f", and {coming_mb} MiB of that go to models that load" if coming_mb > 0 else ""
        return (
            f"it needs {needs_mb} MiB, and the machine {has}{loading}: other programs have the rest."
            f" End some of them (memory_guard: {self.guard})"
        )
