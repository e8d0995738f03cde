"""Liveness, readiness and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from prometheus_client import CollectorRegistry

from router.domain import Scope
from router.fleet.membership import LeaseState
from router.fleet.registry import Fleet
from shared.http.plain import Answer, PlainRoute, operation_routes


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
) -> Sequence[PlainRoute[Scope | None]]:
    """Return `/health`, `/livez`, `/readyz` and `/metrics`."""

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

    return operation_routes(
        readyz, registry, nothing=None, metrics=Scope.ADMIN, ready="Ready for traffic"
    )


def _live_agents(fleet: Fleet) -> int:
    state: Callable[..., LeaseState] = fleet.membership.state
    return sum(state(member) is LeaseState.LIVE for member in fleet.membership)
