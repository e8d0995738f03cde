"""Which of the candidates of a name are fit for a request. Pure."""

from __future__ import annotations

from router.domain import Candidate, EndpointId, Zone
from router.fleet.refusals import outside_zone, unsupported
from shared.contracts.agents import AgentModel


def distinct(found: list[Candidate]) -> list[Candidate]:
    """Drop the second way to the same place: another attempt there would be none."""
    best: dict[tuple[EndpointId, str], Candidate] = {}
    for candidate in found:
        deployment = candidate.deployment
        key = (deployment.endpoint.id, deployment.upstream_name)
        if key not in best or deployment.priority < best[key].deployment.priority:
            best[key] = candidate
    return list(best.values())


def fit_for(
    found: list[Candidate], name: str, zone: Zone | None, path: str
) -> tuple[Candidate, ...]:
    """Return the candidates in the zone that speak the route's API."""
    allowed = [c for c in found if zone is None or c.deployment.endpoint.zone is zone]
    if not allowed:
        raise outside_zone(zone)
    speaking = tuple(c for c in allowed if path in c.deployment.paths)
    if not speaking:
        raise unsupported(name, path)
    return speaking


def names(models: tuple[AgentModel, ...]) -> set[str]:
    """Return all names of an agent's models."""
    return {name for model in models for name in (model.id, *model.aliases)}
