"""`/errors/CODE`: what an error code means; every error that has one of ours links to it."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from local_agent.api.access import Need, allow
from shared.http.errors import explain


def error_routes() -> APIRouter:
    """Return the route, open to everybody: who is refused may read why, and it tells nothing else."""
    routes = APIRouter(tags=["operation"])

    @routes.get(
        "/errors/{code}",
        summary="What an error code means, whose fault it is, and what to do",
        response_class=PlainTextResponse,
    )
    @allow(Need.NOTHING)
    async def explain_code(code: str) -> str:
        return explain(code)

    return routes
