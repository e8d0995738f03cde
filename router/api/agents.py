"""`/internal/v1/agents`: the routes of joining and of leases (`shared.contracts.agents`)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel

from router.api.access import Access, Caller, allow
from router.domain import Scope, ShownCredential
from router.fleet.joining import JoinDesk
from router.fleet.leases import LeaseDesk
from shared import __version__
from shared.contracts.agents import (
    PROTOCOL_VERSION,
    Confirmation,
    CredentialGrant,
    Heartbeat,
    JoinRequest,
    LeaseGrant,
    Registration,
)

_NEVER_KEEP = "no-store"

AgentId = Annotated[str, Path(max_length=64)]
"""What the agent is known by: a UUID of its own making."""


def agent_routes(desk: LeaseDesk, joins: JoinDesk, access: Access) -> APIRouter:
    """Return the routes; each needs an agent's credential, and joining a token."""
    routes = APIRouter(prefix="/internal/v1/agents", tags=["agents"])

    @routes.put("/{agent_id}", summary="Register an agent", response_model=LeaseGrant)
    @allow(Scope.AGENT)
    async def register(
        agent_id: AgentId, registration: Registration, request: Request
    ) -> BaseModel:
        caller = await _hear(request, joins)
        return await desk.register(
            _row(caller), caller.name, agent_id, registration, _address(request)
        )

    @routes.put("/{agent_id}/lease", summary="Renew a lease", response_model=LeaseGrant)
    @allow(Scope.AGENT)
    async def renew(agent_id: AgentId, heartbeat: Heartbeat, request: Request) -> BaseModel:
        return desk.renew(_row(_note(request, joins)), agent_id, heartbeat)

    @routes.delete("/{agent_id}/lease", summary="Give a lease back", status_code=204)
    @allow(Scope.AGENT)
    async def release(
        agent_id: AgentId,
        request: Request,
        incarnation: int | None = None,
        seq: int | None = None,
    ) -> Response:
        await desk.release(_row(_note(request, joins)), agent_id, incarnation, seq)
        return Response(status_code=204)

    _add_joining(routes, joins, access)
    return routes


def _add_joining(routes: APIRouter, joins: JoinDesk, access: Access) -> None:
    @routes.post("/join", summary="Exchange a join token", response_model=CredentialGrant)
    @allow(None)  # the token is what it takes
    async def join(wanted: JoinRequest, request: Request, response: Response) -> BaseModel:
        response.headers["cache-control"] = _NEVER_KEEP
        agent = access.agent_of(request.scope)
        present = None if agent is None else agent.agent
        address = _address(request)
        return await joins.join(wanted.token, wanted.name, present=present, address=address)

    @routes.post("/rotate", summary="Exchange a credential", response_model=CredentialGrant)
    @allow(Scope.AGENT)
    async def rotate(request: Request, response: Response) -> BaseModel:
        response.headers["cache-control"] = _NEVER_KEEP
        return await joins.rotate(_shown(request.state.caller))

    @routes.post("/confirm", summary="Use a credential", response_model=Confirmation)
    @allow(Scope.AGENT)
    async def confirm(request: Request) -> BaseModel:
        name = (await _hear(request, joins)).name
        return Confirmation(name=name, release=__version__, protocol=PROTOCOL_VERSION)


async def _hear(request: Request, joins: JoinDesk) -> Caller:
    """Return the agent that calls; if it uses its next credential, the one before ends now."""
    caller: Caller = request.state.caller
    if caller.is_next:
        await joins.used(_shown(caller), caller.name)
    return caller


def _note(request: Request, joins: JoinDesk) -> Caller:
    """Do as `_hear`, where a registry that is locked must not hold the caller up."""
    caller: Caller = request.state.caller
    if caller.is_next:
        joins.note_use(_shown(caller), caller.name)
    return caller


def _row(caller: Caller) -> int:
    return _shown(caller).row_id


def _shown(caller: Caller) -> ShownCredential:
    # keys with the scope `agent` are agents' credentials, each with its row
    assert caller.agent is not None  # noqa: S101 - Access guarantees it
    return caller.agent


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
