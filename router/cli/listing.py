"""Which models there are, where they are served, and how they stand: pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from router.domain import DeploymentEntry, ModelEntry, Provider, Slo, TimeLimits
from router.fleet.refusals import missing_setting
from router.store.agents import AgentInfo
from router.store.catalog import AGENT_DIALECT
from shared.contracts.agents import AgentModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """A model at one place that serves it: a provider, or an agent by its name."""

    id: str
    aliases: tuple[str, ...]
    served_by: str
    zone: str
    status: str
    context_tokens: int | None
    limits: TimeLimits = field(default_factory=TimeLimits)
    objective: str | None = None
    slo: Slo = field(default_factory=Slo)


def list_served(
    models: Sequence[ModelEntry],
    providers: Sequence[Provider],
    agents: Sequence[AgentInfo],
    *,
    is_usable: Callable[[Provider], bool],
    oldest: float,
) -> list[ListedModel]:
    """Return the registry's models and those that agents registered, by id.

    Args:
        models: the registry's.
        providers: all of them.
        agents: all of them.
        is_usable: whether a provider's credential and address are there, if it needs them.
        oldest: a lease that was renewed before this, in seconds since 1970, has expired.
    """
    offered = list(_offered(agents, oldest))
    by_name = {provider.name: provider for provider in providers}
    found = [row for _, row in offered]
    for model in models:
        for place in model.deployments:
            provider = by_name[place.provider]
            found.append(
                ListedModel(
                    id=model.id,
                    aliases=model.aliases,
                    served_by=provider.name,
                    zone=provider.zone.value,
                    status=_status(place, provider, offered, is_usable),
                    context_tokens=place.context_tokens,
                    limits=place.limits,
                    objective=place.objective,
                    slo=place.slo,
                )
            )
    return sorted(found, key=lambda row: (row.id, row.served_by))


def in_clusters(
    served: Sequence[ListedModel], found: Iterable[tuple[Provider, str]]
) -> list[ListedModel]:
    """Return `served` with the models that clusters serve under names which nobody else has."""
    taken = {name for row in served for name in (row.id, *row.aliases)}
    more = [
        ListedModel(
            id=model,
            aliases=(),
            served_by=provider.name,
            zone=provider.zone.value,
            status="ready",
            context_tokens=None,
        )
        for provider, model in found
        if model not in taken
    ]
    return sorted([*served, *more], key=lambda row: (row.id, row.served_by))


def agent_state(agent: AgentInfo, oldest: float) -> str:
    """Return how an agent stands, in one or two words; `oldest` is as in `list_served`."""
    if agent.revoked_at is not None:
        return "revoked"
    if agent.record.agent_id is None:
        return "never registered"
    renewed_at = agent.record.renewed_at
    if agent.record.lease_id is None or renewed_at is None:
        return "lease given back"
    if renewed_at < oldest:
        return "lease expired"
    said = agent.record.heartbeat or agent.record.registration
    return said.state if said is not None else "ready"


def agent_models(agent: AgentInfo) -> tuple[AgentModel, ...]:
    """Return an agent's models as it last described them."""
    heartbeat, registration = agent.record.heartbeat, agent.record.registration
    if heartbeat is not None and heartbeat.models:
        return heartbeat.models
    return registration.models if registration is not None else ()


def _offered(
    agents: Sequence[AgentInfo], oldest: float
) -> Iterator[tuple[AgentModel, ListedModel]]:
    for agent in agents:
        if agent.revoked_at is not None:
            continue
        state = agent_state(agent, oldest)
        for model in agent_models(agent):
            yield (
                model,
                ListedModel(
                    id=model.id,
                    aliases=model.aliases,
                    served_by=f"agent {agent.record.name}",
                    zone="local",
                    status=model.shown_status if state in {"ready", "draining"} else "agent away",
                    context_tokens=model.context_tokens,
                ),
            )


def _status(
    place: DeploymentEntry,
    provider: Provider,
    offered: Sequence[tuple[AgentModel, ListedModel]],
    is_usable: Callable[[Provider], bool],
) -> str:
    if provider.dialect != AGENT_DIALECT:
        return "ready" if is_usable(provider) else f"no {missing_setting(provider)[0]}"
    wanted = place.upstream_name
    for model, row in offered:
        if wanted == model.id or wanted in model.aliases:
            return row.status
    return "no agent has it"
