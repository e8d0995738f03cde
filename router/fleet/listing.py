"""The models that a client may ask for, with what is known of their state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from router.domain import Catalog, ModelEntry
from router.fleet.membership import LeaseState, Membership
from shared.contracts.agents import Bench


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model as `/v1/models` shows it."""

    id: str
    owned_by: str
    created_at: int
    status: str | None = None
    aliases: tuple[str, ...] = ()
    context_tokens: int | None = None
    bench: tuple[Bench, ...] = ()


def list_models(
    catalog: Catalog, membership: Membership, in_clusters: Iterable[ModelEntry] = ()
) -> list[ListedModel]:
    """Return every model by name: the catalog's, then the agents', then those of clusters.

    A name that is an alias, or anybody else's, is theirs; clusters are asked for what is left.
    """
    listed: dict[str, ListedModel] = {e.id: _of_entry(e) for e in catalog.models}
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
                    model.bench,
                )
    taken = {alias for model in listed.values() for alias in model.aliases}
    for entry in in_clusters:
        if entry.id not in taken:
            listed.setdefault(entry.id, _of_entry(entry))
    return sorted(listed.values(), key=lambda model: model.id)


def _of_entry(entry: ModelEntry) -> ListedModel:
    first = entry.deployments[0] if entry.deployments else None
    return ListedModel(
        entry.id,
        "none" if first is None else first.provider,
        entry.created_at,
        None,
        entry.aliases,
        None if first is None else first.context_tokens,
    )
