"""Which models llm-d clusters were seen to serve: kept for routers that start while one is away."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, delete, insert, select

from router.domain import KnownModel, ModelsChange, ServedModel
from router.store.catalog import has_provider
from router.store.tables import known_models


def list_known_models(connection: Connection) -> list[KnownModel]:
    """Return what is known of all clusters, by name."""
    rows = select(known_models).order_by(known_models.c.cluster, known_models.c.model)
    return [
        KnownModel(
            cluster=row.cluster,
            model=ServedModel(
                id=row.model,
                created_at=row.created_at,
                context_tokens=row.context_tokens,
                base_model=row.base_model,
            ),
            missing_s=row.missing_s,
        )
        for row in connection.execute(rows)
    ]


def change_known_models(connection: Connection, change: ModelsChange) -> None:
    """Write a change. A cluster that was removed meanwhile took its models with it, and stays away."""
    if not has_provider(connection, change.cluster):
        return
    names = [*change.gone, *(each.model.id for each in change.known)]
    if names:
        old = delete(known_models).where(
            known_models.c.cluster == change.cluster, known_models.c.model == bindparam("name")
        )
        connection.execute(old, [{"name": name} for name in names])
    if change.known:
        connection.execute(insert(known_models), [_row(each) for each in change.known])


def _row(known: KnownModel) -> dict[str, object]:
    model = known.model
    return {
        "cluster": known.cluster,
        "model": model.id,
        "created_at": model.created_at,
        "context_tokens": model.context_tokens,
        "base_model": model.base_model,
        "missing_s": known.missing_s,
    }
