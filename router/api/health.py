"""Liveness, readiness and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from router.api.plain import Answer, PlainRoute
from router.domain import Scope
from router.fleet.membership import LeaseState
from router.fleet.registry import Fleet

_ALIVE = Answer(b'{"status":"ok"}')


@dataclass(slots=True)
class Readiness:
    """Whether new traffic should come here, kept by the application.

    `registry` is `ok`, or what is wrong with it; the router serves from its snapshot all the same.
    """

    is_loaded: bool = False
    is_draining: bool = False
    registry: str = "ok"


def health_routes(
    fleet: Fleet, readiness: Readiness, registry: CollectorRegistry
) -> Sequence[PlainRoute]:
    """Return `/health`, `/livez`, `/readyz` and `/metrics`."""

    def alive() -> Answer:
        return _ALIVE

    def readyz() -> Answer:
        is_ready = readiness.is_loaded and not readiness.is_draining
        body: dict[str, object] = {
            "status": "draining" if readiness.is_draining else "ready" if is_ready else "starting",
            "registry": readiness.registry,
            "agents": _live_agents(fleet),
        }
        if clusters := {name: state.value for name, state in fleet.clusters}:
            body["clusters"] = clusters
        return Answer(msgspec.json.encode(body), 200 if is_ready else 503)

    def metrics() -> Answer:
        return Answer(generate_latest(registry), media_type=CONTENT_TYPE_LATEST.encode())

    def route(
        path: str, summary: str, answer: Callable[[], Answer], needed: Scope | None = None
    ) -> PlainRoute:
        return PlainRoute(
            path=path,
            summary=summary,
            answer=answer,
            tag="operation",
            needed=needed,
            name=path.strip("/") if needed else "",
        )

    return (
        route("/health", "Alive", alive),
        route("/livez", "Alive", alive),
        route("/readyz", "Ready for traffic", readyz),
        route("/metrics", "Prometheus metrics", metrics, Scope.ADMIN),
    )


def _live_agents(fleet: Fleet) -> int:
    state: Callable[..., LeaseState] = fleet.membership.state
    return sum(state(member) is LeaseState.LIVE for member in fleet.membership)
