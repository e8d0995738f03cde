"""What of a deployment only llm-d clusters know: its requests' objective and SLOs, and its base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, select, update

from router.domain import LLMD, DeploymentEntry, Provider, Slo
from router.store.errors import InvalidValue, UnknownName
from router.store.names import model_name, object_name
from router.store.tables import deployments, providers
from router.store.versions import Version, bump

_LONGEST_MS: Final = 86_400_000
_LLMDS: Final = "objectives, base models and SLOs are llm-d's; the provider"


def check_cluster_fields(provider: Provider, deployment: DeploymentEntry) -> None:
    """Do nothing unless they are set for a provider that is no cluster: then raise `InvalidValue`."""
    has_any = any(value is not None for value in _fields(deployment).values())
    if has_any and provider.dialect != LLMD:
        raise InvalidValue(f"{_LLMDS} {provider.name!r} speaks {provider.dialect!r}")


def cluster_fields(deployment: DeploymentEntry) -> dict[str, str | int | None]:
    """Return these fields by column, or raise `InvalidValue`."""
    found = _fields(deployment)
    objective, base_model = deployment.objective, deployment.base_model
    if objective is not None:
        object_name(objective, "objective")
    if base_model is not None:
        model_name(base_model, "base model")
    for name in ("slo_ttft_ms", "slo_tpot_ms"):
        _check_ms(found[name], name)
    return found


def set_cluster_fields(
    connection: Connection, model: str, provider: str, change: Mapping[str, str | int | None]
) -> DeploymentEntry:
    """Change `objective`, `base_model`, `slo_ttft_ms`, `slo_tpot_ms` of a deployment, or some of them.

    Returns:
        The deployment; of its fields only these and its names are as they are then.

    Raises:
        UnknownName: the model is not deployed there.
        InvalidValue: a value has a form that is not taken, or the provider is no cluster.
    """
    here = (deployments.c.model == model, deployments.c.provider == provider)
    joined = select(deployments, providers.c.dialect).join(providers)
    row = connection.execute(joined.where(*here)).one_or_none()
    if row is None:
        raise UnknownName(
            f"model {model!r} has no row on {provider!r}; make one: "
            f"iir models add {model} --provider {provider}"
        )
    if row.dialect != LLMD:
        raise InvalidValue(f"{_LLMDS} {provider!r} speaks {row.dialect!r}")
    names = ("objective", "base_model", "slo_ttft_ms", "slo_tpot_ms")
    found = {name: change.get(name, getattr(row, name)) for name in names}
    entry = DeploymentEntry(
        provider=provider,
        upstream_name=row.upstream_name,
        objective=found["objective"],
        base_model=found["base_model"],
        slo=Slo(ttft_ms=found["slo_ttft_ms"], tpot_ms=found["slo_tpot_ms"]),
    )
    connection.execute(update(deployments).where(*here).values(**cluster_fields(entry)))
    bump(connection, Version.CATALOG)
    return entry


def _fields(deployment: DeploymentEntry) -> dict[str, str | int | None]:
    return {
        "objective": deployment.objective,
        "base_model": deployment.base_model,
        "slo_ttft_ms": deployment.slo.ttft_ms,
        "slo_tpot_ms": deployment.slo.tpot_ms,
    }


def _check_ms(value: str | int | None, name: str) -> None:
    if value is not None and not (isinstance(value, int) and 1 <= value <= _LONGEST_MS):
        raise InvalidValue(f"{name} must be 1 to {_LONGEST_MS} ms")
