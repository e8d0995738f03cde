"""What can be given to another worker now: by the ledger, and by the machine. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping

from local_agent.domain import ModelId, WorkerStatus
from local_agent.domain import WorkerState as S
from local_agent.memory.ledger import Ledger
from local_agent.memory.machine import MachineMemory, MachineRoom

_SETTLED = frozenset({S.READY, S.DRAINING, S.STOPPING})
"""States in which a worker has taken the memory that it holds."""


class Room:
    """The ledger's and the machine's room together; notes who waits though no other model has it, and why."""

    def __init__(self, ledger: Ledger) -> None:
        """Take the ledger; of the machine nothing is known yet."""
        self.machine = MachineRoom()
        self._ledger = ledger
        self._short: dict[ModelId, str] = {}
        self._told_at = -math.inf
        self._freed_mb = 0

    @property
    def is_short(self) -> bool:
        """Tell whether a model waits for memory that no other model has."""
        return bool(self._short)

    def shortage(self, model: ModelId) -> str | None:
        """Say why there is no room for a model that waits; None if it waits for other models, or not."""
        return self._short.get(model)

    def told(self, memory: MachineMemory | None, now: float) -> None:
        """Take what the machine's memory is like at this moment of the agent's monotonic clock."""
        self.machine.memory, self._told_at, self._freed_mb = memory, now, 0

    def freed(self, mb: int) -> None:
        """Count what a worker gave back, which the machine will show when it is looked at again."""
        self._freed_mb += mb

    def look_anew(self) -> None:
        """Forget who waits: it is being found out again."""
        self._short = {}

    def may_take(self, model: ModelId, mb: int, observed: Mapping[ModelId, WorkerStatus]) -> bool:
        """Tell whether nothing but other models keeps so much from the model; if not, note why."""
        cause = self.cause(mb, observed)
        if cause is not None:
            self._short[model] = cause
        return cause is None

    def cause(self, mb: int, observed: Mapping[ModelId, WorkerStatus]) -> str | None:
        """Say why so much can't be had although no other model has it; None if that is not so."""
        ledger = self._ledger
        if mb <= ledger.budget_mb < mb + ledger.left_mb:
            return (
                f"it needs {mb} MiB, and workers that have ended still hold {ledger.left_mb} of the"
                f" {ledger.budget_mb} MiB for models; the agent's log names them"
            )
        return self.machine.shortage(mb, self._coming_mb(observed))

    def free_mb(self, observed: Mapping[ModelId, WorkerStatus]) -> int:
        """Return what can be given now."""
        machine_mb = self.machine.free_mb(self._coming_mb(observed))
        free_mb = self._ledger.free_mb
        return free_mb if machine_mb is None else min(free_mb, machine_mb)

    def spare_mb(self) -> int:
        """Return what could be given if nobody were loading.

        What is being loaded is partly taken and partly not, and nobody knows how much: no other model goes for
        that, it is waited for.
        """
        machine_mb = self.machine.free_mb(min(0, -self._freed_mb))
        free_mb = self._ledger.free_mb
        return free_mb if machine_mb is None else min(free_mb, machine_mb)

    def _coming_mb(self, observed: Mapping[ModelId, WorkerStatus]) -> int:
        """Return what is given to workers, and not seen as taken yet, less what was given back."""
        given = (
            mb
            for model, mb in self._ledger.held.items()
            if not self._is_seen(observed.get(model, WorkerStatus()))
        )
        return sum(given) - self._freed_mb

    def _is_seen(self, status: WorkerStatus) -> bool:
        """Tell whether the last look at the machine showed what the worker takes."""
        is_new = status.state is S.READY and status.since > self._told_at
        return status.state in _SETTLED and not is_new
