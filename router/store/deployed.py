"""What of a deployment only llm-d clusters know: the objective of its requests, and its base model."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, select, update

from router.domain import LLMD, DeploymentEntry, Provider
from router.store.errors import InvalidValue, UnknownName
from router.store.names import model_name, object_name
from router.store.tables import deployments, providers
from router.store.versions import Version, bump


def check_cluster_fields(provider: Provider, deployment: DeploymentEntry) -> None:
    """Do nothing unless they are set for a provider that is no cluster: then raise `InvalidValue`."""
    has_any = deployment.objective is not None or deployment.base_model is not None
    if has_any and provider.dialect != LLMD:
        raise InvalidValue(
            f"objectives and base models are llm-d's; the provider {provider.name!r} speaks "
            f"{provider.dialect!r}"
        )


def cluster_fields(deployment: DeploymentEntry) -> dict[str, str | None]:
    """Return these fields by column, or raise `InvalidValue`."""
    objective, base_model = deployment.objective, deployment.base_model
    return {
        "objective": None if objective is None else object_name(objective, "objective"),
        "base_model": None if base_model is None else model_name(base_model, "base model"),
    }


def set_cluster_fields(
    connection: Connection, model: str, provider: str, change: dict[str, str | None]
) -> DeploymentEntry:
    """Change `objective`, `base_model` or both of a deployment; return these as they are then.

    Raises:
        UnknownName: the model is not deployed there.
        InvalidValue: a value has a form that is not taken, or the provider is no cluster.
    """
    here = (deployments.c.model == model, deployments.c.provider == provider)
    columns = (deployments.c.objective, deployments.c.base_model, deployments.c.upstream_name)
    joined = select(*columns, providers.c.dialect).join(providers)
    row = connection.execute(joined.where(*here)).one_or_none()
    if row is None:
        raise UnknownName(
            f"model {model!r} has no row on {provider!r}; make one: "
            f"iir models add {model} --provider {provider}"
        )
    if row.dialect != LLMD:
        raise InvalidValue(
            f"objectives and base models are llm-d's; the provider {provider!r} speaks {row.dialect!r}"
        )
    entry = DeploymentEntry(
        provider=provider,
        upstream_name=row.upstream_name,
        objective=row.objective,
        base_model=row.base_model,
    )
    entry = replace(entry, **change)  # type: ignore[arg-type] # both fields are text or None
    connection.execute(update(deployments).where(*here).values(**cluster_fields(entry)))
    bump(connection, Version.CATALOG)
    return entry
