"""What the agent can take, and whether it takes any: `/internal/capacity`, `drain` and `resume`."""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import APIRouter

from local_agent.api.access import Need, allow
from local_agent.intake import Intake
from shared.contracts.agents import AgentModel, Capacity, Power, Queue
from shared.http.errors import Conflict


class Subject(Protocol):
    """The agent, as its heartbeats describe it."""

    def queue(self) -> Queue:
        """Return its load."""
        ...

    def capacity(self) -> Capacity:
        """Return its memory for models."""
        ...

    def power(self) -> Power:
        """Return what its host runs on."""
        ...

    def models(self) -> tuple[AgentModel, ...]:
        """Return its models."""
        ...


def capacity_routes(intake: Intake, subject: Subject) -> APIRouter:
    """Return the routes; each answers with what the agent can take then."""
    routes = APIRouter(prefix="/internal", tags=["control"])

    def shown() -> dict[str, Any]:
        return {
            "state": intake.state.value,
            "reason": intake.reason,
            "in_hand": intake.in_hand,
            "queue": subject.queue().model_dump(),
            **subject.capacity().model_dump(),
            "power": subject.power().model_dump(),
            "models": [{"id": model.id, "status": model.status} for model in subject.models()],
        }

    @routes.get("/capacity", summary="Memory, load, and whether new work is taken")
    @allow(Need.CONTROL)
    async def capacity() -> dict[str, Any]:
        return shown()

    @routes.post("/drain", summary="Take no new work, finish the old")
    @allow(Need.CONTROL)
    async def drain() -> dict[str, Any]:
        intake.drain()
        return shown()

    @routes.post("/resume", summary="Take work again")
    @allow(Need.CONTROL)
    async def resume() -> dict[str, Any]:
        if intake.is_ending:
            raise Conflict("The agent is stopping. Start it anew: iir-agent serve")
        intake.resume()
        return shown()

    return routes
