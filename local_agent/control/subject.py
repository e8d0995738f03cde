"""The agent as its heartbeats describe it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping

from local_agent.control.identity import Identity
from local_agent.domain import WorkerState, WorkerView
from local_agent.intake import Intake, IntakeState
from local_agent.lifecycle import SERVING
from local_agent.supervisor import Supervisor
from shared.contracts.agents import (
    AgentModel,
    AgentState,
    Capacity,
    Power,
    Queue,
    Registration,
)

_MIB = 2**20


class AgentSubject:
    """Reads everything from the supervisor, at the moment it is asked."""

    def __init__(
        self,
        supervisor: Supervisor,
        identity: Identity,
        intake: Intake,
        *,
        base_url: str,
        engines: tuple[str, ...],
        labels: Callable[[], Mapping[str, str]],
        power: Callable[[], Power],
    ) -> None:
        self._supervisor = supervisor
        self._identity = identity
        self._intake = intake
        self._base_url = base_url
        self._engines = engines
        self._labels = labels
        self._power = power
        self._heard = 0

    def registration(self) -> Registration:
        """See `Subject.registration`."""
        models = self.models()
        return Registration(
            incarnation=self._identity.incarnation,
            name=self._identity.name,
            base_url=self._base_url,
            access_token=self._identity.access_token,
            platform=f"{platform.system().lower()}-{platform.machine().lower()}",
            engines=self._engines,
            models=models,
            labels=dict(self._labels()),
            catalog_hash=hashlib.sha256(repr(models).encode()).hexdigest()[:16],
        )

    def state(self) -> AgentState:
        """See `Subject.state`."""
        return "ready" if self._intake.state is IntakeState.READY else "draining"

    def queue(self) -> Queue:
        """See `Subject.queue`."""
        views = self._supervisor.workers()
        return Queue(
            running=sum(view.running for view in views),
            waiting=sum(view.waiting for view in views),
            max_waiting=sum(view.max_queue for view in views if view.state in SERVING),
            expected_wait_s=round(max((view.expected_wait_s for view in views), default=0.0), 1),
        )

    def capacity(self) -> Capacity:
        """See `Subject.capacity`."""
        ledger = self._supervisor.residency.ledger
        evictable_mb = sum(view.memory_mb for view in self._supervisor.workers() if _may_go(view))
        return Capacity(
            budget_bytes=ledger.budget_mb * _MIB,
            free_bytes=ledger.free_mb * _MIB,
            evictable_bytes=evictable_mb * _MIB,
        )

    def power(self) -> Power:
        """See `Subject.power`."""
        return self._power()

    def reason(self) -> str | None:
        """See `Subject.reason`."""
        return self._intake.reason

    def models(self) -> tuple[AgentModel, ...]:
        """See `Subject.models`."""
        return self._supervisor.models()

    async def changed(self) -> None:
        """See `Subject.changed`."""
        self._heard = await self._supervisor.changed(self._heard)


def _may_go(view: WorkerView) -> bool:
    return view.state is WorkerState.READY and not view.in_flight and not view.is_pinned
