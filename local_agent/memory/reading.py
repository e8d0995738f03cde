"""Reads what the machine's memory is like now, again and again."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
import psutil

from local_agent.host.tools import ask_mac, sysctl
from local_agent.memory.machine import (
    FREE_PERCENT,
    PRESSURE_LEVEL,
    MachineMemory,
    of_linux,
    of_macos,
)
from shared.kit.logs import get_logger

_EVERY_S = 5.0
_OFTEN_S = 1.0
_PSI = Path("/proc/pressure/memory")
_MIB = 2**20


def machine_memory() -> MachineMemory | None:
    """Return the machine's memory at this moment, None if it does not tell; may block for a moment."""
    memory = psutil.virtual_memory()
    if sys.platform == "darwin":
        told = sysctl(FREE_PERCENT, PRESSURE_LEVEL)
        return of_macos(memory.total // _MIB, ask_mac("vm_stat"), told)
    text = ""
    with suppress(OSError):  # a kernel without it
        text = _PSI.read_text(encoding="ascii")
    return of_linux(memory.available // _MIB, text)


class MachineWatch:
    """Looks at the machine's memory every few seconds, and oftener while somebody waits for it."""

    def __init__(
        self,
        told: Callable[[MachineMemory | None], Awaitable[None]],
        is_waited_for: Callable[[], bool],
        *,
        read: Callable[[], MachineMemory | None] = machine_memory,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Take whom to tell.

        Args:
            told: takes what the memory is like.
            is_waited_for: tells whether somebody waits for memory to come back.
            read: reads it; may block.
            sleep: waits between looks.
        """
        self._told = told
        self._is_waited_for = is_waited_for
        self._read = read
        self._sleep = sleep

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await self._sleep(_OFTEN_S if self._is_waited_for() else _EVERY_S)

    async def look(self) -> None:
        """Look once; a defect here must not end what clients use."""
        try:
            await self._told(await anyio.to_thread.run_sync(self._read))
        except Exception:  # noqa: BLE001 - whatever it is, it is logged and tried again
            get_logger("agent").exception("memory_look_failed")
