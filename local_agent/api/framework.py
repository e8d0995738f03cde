"""What FastAPI serves: what the agent is told to do, and what errors mean."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError

from local_agent.api.access import AgentAccess
from local_agent.api.capacity import capacity_routes
from local_agent.api.control import control_routes
from local_agent.api.errors import error_routes
from local_agent.api.events import event_routes
from local_agent.api.logs import log_routes
from local_agent.api.pulls import pull_routes
from local_agent.api.residency import residency_routes
from shared.http.envelopes import framework_app

__all__ = [
    "capacity_routes",
    "control_app",
    "control_routes",
    "event_routes",
    "log_routes",
    "pull_routes",
    "residency_routes",
]


def control_app(access: AgentAccess, routers: Sequence[APIRouter]) -> FastAPI:
    """Return the application that serves `routers`."""

    async def authorize(request: Request) -> None:
        access.check_route(request.scope)

    app = framework_app(
        FastAPI,
        "Intelligent Inference Router: local agent",
        dependencies=[Depends(authorize)],
        invalid=RequestValidationError,
    )
    for router in (*routers, error_routes()):
        app.include_router(router)
    return app
