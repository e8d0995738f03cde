"""Which models llm-d clusters were seen to serve: kept for routers that start while one is away."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from router.domain import LLMD, ForgottenName, KnownModel, ModelsChange, ServedModel
from router.store.catalog import get_provider, has_provider
from router.store.errors import InvalidValue, UnknownName
from router.store.tables import known_models
from router.store.versions import Version, bump
from shared.kit.clock import Clock, wall_time


def list_known_models(connection: Connection) -> list[KnownModel]:
    """Return what is known of all clusters, by name."""
    rows = select(known_models).where(known_models.c.forgotten_at.is_(None))
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
        for row in connection.execute(rows.order_by(known_models.c.cluster, known_models.c.model))
    ]


def known_of(connection: Connection, cluster: str) -> list[KnownModel]:
    """Return what is known of one cluster, by name.

    Raises:
        UnknownName: there is no such provider.
        InvalidValue: it is no cluster.
    """
    provider = get_provider(connection, cluster)
    if provider.dialect != LLMD:
        raise InvalidValue(
            f"names are kept of llm-d clusters only; {cluster!r} speaks {provider.dialect!r}"
        )
    return [known for known in list_known_models(connection) if known.cluster == cluster]


def forget_models(
    connection: Connection, cluster: str, models: Sequence[str], *, now: Clock = wall_time
) -> None:
    """Let names go that a cluster is known for; routers that run do so with the next catalog.

    Raises:
        UnknownName: there is no such provider, or it is not known for one of the names.
        InvalidValue: it is no cluster.
    """
    known = {each.model.id for each in known_of(connection, cluster)}
    for model in models:
        if model not in known:
            raise UnknownName(
                f"{cluster!r} is not known for {model!r}; `iir providers names {cluster}` lists all"
            )
    is_one = (known_models.c.cluster == cluster, known_models.c.model.in_(models))
    connection.execute(update(known_models).where(*is_one).values(forgotten_at=int(now())))
    bump(connection, Version.CATALOG)


def list_forgotten(connection: Connection) -> list[ForgottenName]:
    """Return the names that were let go and not seen since."""
    table = known_models.c
    rows = select(table.cluster, table.model, table.forgotten_at)
    return [
        ForgottenName(row.cluster, row.model, row.forgotten_at)
        for row in connection.execute(rows.where(table.forgotten_at.is_not(None)))
    ]


def change_known_models(connection: Connection, change: ModelsChange) -> None:
    """Write a change.

    A cluster that was removed meanwhile took its models with it, and stays away. So does a name that was
    let go, of which the writer has not heard yet.
    """
    if not has_provider(connection, change.cluster):
        return
    unheard = set(list_forgotten(connection)) - change.heard
    away = {each.model for each in unheard if each.cluster == change.cluster}
    known = [each for each in change.known if each.model.id not in away]
    names = [name for name in change.gone if name not in away]
    names += [each.model.id for each in known]
    if names:
        old = delete(known_models).where(
            known_models.c.cluster == change.cluster, known_models.c.model == bindparam("name")
        )
        connection.execute(old, [{"name": name} for name in names])
    if known:
        connection.execute(insert(known_models), [_row(each) for each in known])


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
