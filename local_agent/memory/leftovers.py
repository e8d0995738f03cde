"""Memory that ended workers still hold: it stays reserved until it is back.

Two kinds. A process that nobody can end keeps its memory for as long as it lives. And on a Mac what Metal
held is wired memory, which may come back a while after the process has gone: the next load must not count
on it before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import count

from local_agent.domain import ModelId, Unended, WorkerState
from local_agent.memory.ledger import Ledger
from local_agent.memory.machine import MachineMemory
from local_agent.ports import Process
from shared.kit.logs import get_logger

_LEAST_MB = 256
"""Less than that is lost in what other programs do with wired memory meanwhile."""
_BACK_SHARE = 0.8
_BACK_WITHIN_S = 15.0


@dataclass(frozen=True, slots=True)
class _Owed:
    """Wired memory that should be under `until_mb` before `limit`."""

    name: str
    until_mb: float
    limit: float


class WiredReturn:
    """Watches wired memory come back after a stop. Pure; times of the agent's monotonic clock, MiB."""

    def __init__(self) -> None:
        """Watch nobody."""
        self._before: dict[ModelId, int] = {}
        self._grown: dict[ModelId, int] = {}
        self._owed: list[_Owed] = []

    @property
    def is_waiting(self) -> bool:
        """Tell whether memory is not back yet."""
        return bool(self._owed)

    def observe(self, model: ModelId, state: WorkerState, wired_mb: int | None) -> None:
        """Note the wired memory at a start, and by how much it has grown when the model serves."""
        if wired_mb is None:
            return
        if state is WorkerState.STARTING:
            self._before[model] = wired_mb
        elif state is WorkerState.READY and model in self._before:
            self._grown[model] = wired_mb - self._before.pop(model)

    def ended(self, model: ModelId, name: str, wired_mb: int | None, now: float) -> int:
        """Return how much has to stay reserved under `name`, since the worker's memory may not be back."""
        grown = self._grown.pop(model, 0)
        self._before.pop(model, None)
        if wired_mb is None or grown < _LEAST_MB:
            return 0
        self._owed.append(_Owed(name, wired_mb - _BACK_SHARE * grown, now + _BACK_WITHIN_S))
        return grown

    def look(self, wired_mb: int | None, now: float) -> list[tuple[str, bool]]:
        """Return who is not waited for any more, each with whether its memory came back."""
        over = [
            (one, wired_mb is not None and wired_mb <= one.until_mb)
            for one in self._owed
            if now >= one.limit or (wired_mb is not None and wired_mb <= one.until_mb)
        ]
        self._owed = [one for one in self._owed if one not in [each for each, _ in over]]
        return [(one.name, is_back) for one, is_back in over]


class Leftovers:
    """What the ledger keeps for workers that have ended."""

    def __init__(self, ledger: Ledger) -> None:
        """Take the ledger that the workers' memory stands in."""
        self.wired = WiredReturn()
        self._ledger = ledger
        self._leaked: dict[str, Process] = {}
        self._inherited: set[str] = set()
        self._living: Callable[[], Awaitable[Mapping[str, Unended]]] | None = None
        self._numbers = count(1)
        self._log = get_logger("agent")

    @property
    def is_any(self) -> bool:
        """Tell whether something is kept."""
        return bool(self._leaked or self._inherited) or self.wired.is_waiting

    def leaked(self, model: ModelId, process: Process) -> None:
        """Keep the memory of a process that could not be ended."""
        name = f"{model} (leaked {next(self._numbers)})"
        self._ledger.leave(model, name)
        self._leaked[name] = process

    async def inherit(
        self,
        living: Callable[[], Awaitable[Mapping[str, Unended]]],
        peak_mb: Callable[[ModelId, str], int | None],
    ) -> None:
        """Keep the memory of processes that earlier agents could not end.

        Args:
            living: returns those that still live.
            peak_mb: returns the most that was seen of a model in one configuration. What its process
                shows now may be less: on a Mac the memory of Metal is not in it.
        """
        self._living = living
        for name, left in (await living()).items():
            mb = max(left.memory_mb, peak_mb(ModelId(left.model), left.config_hash) or 0)
            self._ledger.inherit(name, mb)
            self._inherited.add(name)
            self._log.warning("leaked_worker_inherited", worker=name, memory_mb=mb)

    def ended(self, model: ModelId, memory: MachineMemory | None, now: float) -> int:
        """Give back the memory of a worker that has ended, but for what is not seen back yet.

        Return how much was given back.
        """
        held_mb = self._ledger.held_mb
        name = f"{model} (wired {next(self._numbers)})"
        wired_mb = None if memory is None else memory.wired_mb
        self._ledger.leave(model, name, self.wired.ended(model, name, wired_mb, now))
        return held_mb - self._ledger.held_mb

    async def look(
        self, memory: MachineMemory | None, now: float, tell: Callable[[], None]
    ) -> None:
        """Give back what is back; `tell` is called if something was."""
        found = self.wired.look(None if memory is None else memory.wired_mb, now)
        for name, is_back in found:
            self._ledger.recover(name)
            if not is_back:
                self._log.warning("wired_memory_not_back", worker=name)
        gone = [name for name, process in self._leaked.items() if await process.is_gone()]
        if self._inherited and self._living is not None:
            gone += self._inherited - set(await self._living())
        for name in gone:
            self._leaked.pop(name, None)
            self._inherited.discard(name)
            self._ledger.recover(name)
            self._log.info("leaked_worker_gone", worker=name)
        if found or gone:
            tell()
