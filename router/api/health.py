"""Liveness, readiness and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from router.api.access import allow
from router.domain import Scope
from router.fleet.membership import LeaseState
from router.fleet.registry import Fleet


@dataclass(slots=True)
class Readiness:
    """Whether new traffic should come here, kept by the application.

    `registry` is `ok`, or what is wrong with it; the router serves from its snapshot all the same.
    """

    is_loaded: bool = False
    is_draining: bool = False
    registry: str = "ok"


def health_routes(fleet: Fleet, readiness: Readiness, registry: CollectorRegistry) -> APIRouter:
    """Return `/health`, `/livez`, `/readyz` and `/metrics`."""
    routes = APIRouter(tags=["operation"])

    @routes.get("/health", summary="Alive")
    @allow(None)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/livez", summary="Alive")
    @allow(None)
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/readyz", summary="Ready for traffic")
    @allow(None)
    async def readyz() -> Response:
        is_ready = readiness.is_loaded and not readiness.is_draining
        body: dict[str, object] = {
            "status": "draining" if readiness.is_draining else "ready" if is_ready else "starting",
            "registry": readiness.registry,
            "agents": _live_agents(fleet),
        }
        if clusters := {name: state.value for name, state in fleet.clusters}:
            body["clusters"] = clusters
        return JSONResponse(body, 200 if is_ready else 503)

    # load balancers and uptime checks ask like this
    for path, answer in (("/health", health), ("/livez", livez), ("/readyz", readyz)):
        routes.head(path, include_in_schema=False)(answer)

    @routes.get("/metrics", summary="Prometheus metrics")
    @allow(Scope.ADMIN, "metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return routes


def _live_agents(fleet: Fleet) -> int:
    state: Callable[..., LeaseState] = fleet.membership.state
    return sum(state(member) is LeaseState.LIVE for member in fleet.membership)
