"""What FastAPI serves: agents, what errors mean, and the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError

from router.api.access import Access
from router.api.agents import agent_routes
from router.api.docs import docs_routes
from router.api.errors import error_routes
from router.fleet.joining import JoinDesk
from router.fleet.leases import LeaseDesk
from shared.http.envelopes import framework_app
from shared.http.plain import PlainRoute


def control_app(
    desk: LeaseDesk, joins: JoinDesk, access: Access, plain: Sequence[PlainRoute[Any]]
) -> FastAPI:
    """Return the application; its documentation describes the `plain` routes too."""

    async def authorize(request: Request) -> None:
        request.state.caller = access.check_route(request.scope)

    app = framework_app(
        FastAPI,
        "Intelligent Inference Router",
        dependencies=[Depends(authorize)],
        invalid=RequestValidationError,
    )
    app.include_router(agent_routes(desk, joins, access))
    app.include_router(error_routes())
    app.include_router(docs_routes(app, plain))
    return app
