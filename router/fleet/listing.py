"""The models that a client may ask for, with what is known of their state."""

from __future__ import annotations

from dataclasses import dataclass

from router.domain import Catalog
from router.fleet.membership import LeaseState, Membership


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model as `/v1/models` shows it."""

    id: str
    owned_by: str
    created_at: int
    status: str | None = None
    aliases: tuple[str, ...] = ()
    context_tokens: int | None = None


def list_models(catalog: Catalog, membership: Membership) -> list[ListedModel]:
    """Return every model by name: the catalog's, then the agents'."""
    listed: dict[str, ListedModel] = {}
    for entry in catalog.models:
        owner = entry.deployments[0].provider if entry.deployments else "none"
        context = entry.deployments[0].context_tokens if entry.deployments else None
        listed[entry.id] = ListedModel(
            entry.id, owner, entry.created_at, None, entry.aliases, context
        )
    for member in membership:
        state = membership.state(member)
        if state is LeaseState.GONE:
            continue
        for model in member.models:
            status = model.status if state.is_routable else "unavailable"
            best = listed.get(model.id)
            if best is None or best.status not in {None, "loaded"}:
                listed[model.id] = ListedModel(
                    model.id,
                    member.name,
                    member.registration.incarnation // 1000,
                    status,
                    model.aliases,
                    model.context_tokens,
                )
    return sorted(listed.values(), key=lambda model: model.id)
