"""`/internal/v1/agents`: the lease protocol's routes (`shared.contracts.agents`)."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from router.api.access import Caller, allow
from router.domain import Scope
from router.fleet.leases import LeaseDesk
from shared.contracts.agents import Heartbeat, LeaseGrant, Registration


def agent_routes(desk: LeaseDesk) -> APIRouter:
    """Return the routes; each needs an agent's credential."""
    routes = APIRouter(prefix="/internal/v1/agents", tags=["agents"])

    @routes.put("/{agent_id}", summary="Register an agent", response_model=LeaseGrant)
    @allow(Scope.AGENT)
    async def register(agent_id: str, registration: Registration, request: Request) -> BaseModel:
        client = request.client.host if request.client else ""
        name = request.state.caller.name
        return await desk.register(_row(request), name, agent_id, registration, client)

    @routes.put("/{agent_id}/lease", summary="Renew a lease", response_model=LeaseGrant)
    @allow(Scope.AGENT)
    async def renew(agent_id: str, heartbeat: Heartbeat, request: Request) -> BaseModel:
        return desk.renew(_row(request), agent_id, heartbeat)

    @routes.delete("/{agent_id}/lease", summary="Give a lease back", status_code=204)
    @allow(Scope.AGENT)
    async def release(agent_id: str, request: Request) -> Response:
        await desk.release(_row(request), agent_id)
        return Response(status_code=204)

    return routes


def _row(request: Request) -> int:
    caller: Caller = request.state.caller
    # keys with the scope `agent` are agents' credentials, each with its row
    assert caller.agent_row is not None  # noqa: S101 - Access guarantees it
    return caller.agent_row
