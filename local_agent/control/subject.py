"""The agent as its heartbeats describe it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping

from local_agent.control.identity import Identity
from local_agent.lifecycle import SERVING
from local_agent.supervisor import Supervisor
from shared.contracts.agents import AgentModel, AgentState, Queue, Registration


class AgentSubject:
    """Reads everything from the supervisor, at the moment it is asked."""

    def __init__(
        self,
        supervisor: Supervisor,
        identity: Identity,
        *,
        base_url: str,
        engines: tuple[str, ...],
        labels: Callable[[], Mapping[str, str]],
    ) -> None:
        self._supervisor = supervisor
        self._identity = identity
        self._base_url = base_url
        self._engines = engines
        self._labels = labels
        self._heard = 0
        self._is_draining = False

    def drain(self) -> None:
        """Say from now on, and to the router at once, that nothing new should come."""
        self._is_draining = True
        self._supervisor.notify()

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
        return "draining" if self._is_draining else "ready"

    def queue(self) -> Queue:
        """See `Subject.queue`."""
        views = self._supervisor.workers()
        return Queue(
            running=sum(view.running for view in views),
            waiting=sum(view.waiting for view in views),
            max_waiting=sum(view.max_queue for view in views if view.state in SERVING),
            expected_wait_s=round(max((view.expected_wait_s for view in views), default=0.0), 1),
        )

    def models(self) -> tuple[AgentModel, ...]:
        """See `Subject.models`."""
        return self._supervisor.models()

    async def changed(self) -> None:
        """See `Subject.changed`."""
        self._heard = await self._supervisor.changed(self._heard)
