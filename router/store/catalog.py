"""Providers, models, aliases and prefix rules: what is added, removed and listed.

Functions take a connection inside a transaction. Each write counts up the catalog's version.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select, update

from router.domain import (
    LLMD,
    DeploymentEntry,
    ModelEntry,
    ModelName,
    PrefixRule,
    Provider,
    Slo,
    TimeLimits,
    Zone,
)
from router.store.deployed import check_cluster_fields, cluster_fields
from router.store.errors import InvalidValue, NameTaken, UnknownName
from router.store.limits import api_names, in_flight_limit, share, time_limits
from router.store.names import label, model_name, variable
from router.store.tables import aliases as alias_table
from router.store.tables import deployments, models, prefix_rules, providers
from router.store.urls import normalise
from router.store.versions import Version, bump
from shared.kit.clock import Clock, wall_time

AGENT_DIALECT = "agent"


def add_provider(connection: Connection, provider: Provider, *, now: Clock = wall_time) -> None:
    """Add a provider.

    Raises:
        InvalidValue: a name, the base URL, a limit or an API has a form that is not taken.
        NameTaken: there is one with this name.
    """
    name = label(provider.name, "provider's name")
    if has_provider(connection, name):
        raise NameTaken(f"there is a provider {name!r} already; `iir providers list` shows it")
    connection.execute(
        insert(providers).values(
            name=name,
            dialect=label(provider.dialect, "dialect"),
            zone=provider.zone.value,
            created_at=int(now()),
            **_changeable(provider),
        )
    )
    bump(connection, Version.CATALOG)


def update_provider(connection: Connection, provider: Provider) -> None:
    """Write all of the provider with this name but its dialect and its zone, which stay as they are.

    What it is known to serve stays too, wherever it has moved.

    Raises:
        UnknownName: there is none with this name.
        InvalidValue: the base URL, a name, the limit or an API has a form that is not taken.
    """
    get_provider(connection, provider.name)
    of_name = providers.c.name == provider.name
    connection.execute(update(providers).where(of_name).values(**_changeable(provider)))
    bump(connection, Version.CATALOG)


def remove_provider(connection: Connection, name: str) -> None:
    """Remove a provider and its prefix rules.

    Raises:
        UnknownName: there is none with this name.
        NameTaken: models are deployed on it.
    """
    get_provider(connection, name)
    rows = select(deployments.c.model).where(deployments.c.provider == name)
    used_by = connection.scalars(rows.order_by(deployments.c.model)).all()
    if used_by:
        more = "" if len(used_by) <= 3 else f" and {len(used_by) - 3} more"
        raise NameTaken(
            f"provider {name!r} serves {', '.join(used_by[:3])}{more}; "
            "remove these first with `iir models remove`"
        )
    connection.execute(delete(providers).where(providers.c.name == name))
    bump(connection, Version.CATALOG)


def has_provider(connection: Connection, name: str) -> bool:
    """Tell whether there is a provider with this name."""
    return bool(connection.scalar(select(providers.c.name).where(providers.c.name == name)))


def get_provider(connection: Connection, name: str) -> Provider:
    """Return a provider by name, or raise `UnknownName`."""
    for provider in list_providers(connection):
        if provider.name == name:
            return provider
    raise UnknownName(f"there is no provider {name!r}; `iir providers list` shows all")


def list_providers(connection: Connection) -> list[Provider]:
    """Return all providers, by name."""
    return [
        Provider(
            name=row.name,
            dialect=row.dialect,
            base_url=row.base_url,
            zone=Zone(row.zone),
            key_env=row.key_env,
            max_in_flight=row.max_in_flight,
            apis=None if row.apis is None else tuple(row.apis),
        )
        for row in connection.execute(select(providers).order_by(providers.c.name))
    ]


def add_model(
    connection: Connection,
    name: str,
    deployment: DeploymentEntry,
    *,
    aliases: Sequence[str] = (),
    now: Clock = wall_time,
) -> None:
    """Deploy a model on a provider, making the model if it is new, with its aliases.

    Raises:
        InvalidValue: a name or a limit has a form that is not taken.
        UnknownName: there is no such provider.
        NameTaken: it is deployed there already, or a name belongs to another model.
    """
    model = model_name(name)
    check_cluster_fields(get_provider(connection, deployment.provider), deployment)
    if not _has_model(connection, model):
        _refuse_alias(connection, model)
        connection.execute(insert(models).values(id=model, created_at=int(now())))
    elif _is_deployed(connection, model, deployment.provider):
        raise NameTaken(
            f"model {model!r} is deployed on {deployment.provider!r} already; "
            "`iir models remove` takes it out"
        )
    connection.execute(insert(deployments).values(model=model, **_columns(deployment)))
    for alias in aliases:
        add_alias(connection, alias, model)
    bump(connection, Version.CATALOG)


def add_alias(connection: Connection, alias: str, model: str) -> None:
    """Let `alias` name `model` too; nothing changes if it does already.

    Raises:
        InvalidValue: the alias has a form that is not taken.
        UnknownName: there is no such model.
        NameTaken: the alias is a model's id, or another model's alias.
    """
    model_name(alias, "alias")
    if not _has_model(connection, model):
        raise UnknownName(f"there is no model {model!r}; `iir models list` shows all")
    if _has_model(connection, alias):
        raise NameTaken(f"{alias!r} is a model's id; an alias needs a name of its own")
    if _model_of(connection, alias) == model:
        return
    _refuse_alias(connection, alias)
    connection.execute(insert(alias_table).values(alias=alias, model=model))
    bump(connection, Version.CATALOG)


def remove_model(connection: Connection, name: str) -> None:
    """Remove a model, its deployments and its aliases, or raise `UnknownName`."""
    if not _has_model(connection, name):
        owner = _model_of(connection, name)
        hint = f"it is an alias of {owner!r}" if owner else "`iir models list` shows all"
        raise UnknownName(f"there is no model {name!r} in the registry; {hint}")
    connection.execute(delete(models).where(models.c.id == name))
    bump(connection, Version.CATALOG)


def list_models(connection: Connection) -> list[ModelEntry]:
    """Return all models of the registry, by id, deployments by priority."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for row in connection.execute(select(alias_table).order_by(alias_table.c.alias)):
        names[row.model].append(row.alias)
    places: defaultdict[str, list[DeploymentEntry]] = defaultdict(list)
    order = (deployments.c.priority, deployments.c.provider)
    for row in connection.execute(select(deployments).order_by(*order)):
        places[row.model].append(
            DeploymentEntry(
                provider=row.provider,
                upstream_name=row.upstream_name,
                priority=row.priority,
                weight=row.weight,
                context_tokens=row.context_tokens,
                capabilities=tuple(row.capabilities),
                limits=TimeLimits(
                    connect_s=row.connect_s,
                    first_byte_s=row.first_byte_s,
                    idle_s=row.idle_s,
                    total_s=row.total_s,
                ),
                objective=row.objective,
                base_model=row.base_model,
                slo=Slo(ttft_ms=row.slo_ttft_ms, tpot_ms=row.slo_tpot_ms),
            )
        )
    return [
        ModelEntry(
            id=ModelName(row.id),
            aliases=tuple(names[row.id]),
            created_at=row.created_at,
            deployments=tuple(places[row.id]),
        )
        for row in connection.execute(select(models).order_by(models.c.id))
    ]


def add_prefix_rule(connection: Connection, rule: PrefixRule) -> None:
    """Add a prefix rule.

    Raises:
        InvalidValue: the prefix has a form that is not taken.
        UnknownName: there is no such provider.
        NameTaken: there is a rule for this prefix.
    """
    model_name(rule.prefix, "prefix")
    get_provider(connection, rule.provider)
    if has_prefix_rule(connection, rule.prefix):
        raise NameTaken(f"there is a rule for the prefix {rule.prefix!r} already")
    connection.execute(insert(prefix_rules).values(prefix=rule.prefix, provider=rule.provider))
    bump(connection, Version.CATALOG)


def has_prefix_rule(connection: Connection, prefix: str) -> bool:
    """Tell whether there is a rule for exactly this prefix."""
    found = select(prefix_rules.c.prefix).where(prefix_rules.c.prefix == prefix)
    return connection.scalar(found) is not None


def list_prefix_rules(connection: Connection) -> list[PrefixRule]:
    """Return all prefix rules, the longest prefix first."""
    rows = connection.execute(select(prefix_rules))
    rules = [PrefixRule(row.prefix, row.provider) for row in rows]
    return sorted(rules, key=lambda rule: (-len(rule.prefix), rule.prefix))


def is_name_taken(connection: Connection, name: str) -> bool:
    """Tell whether a model or an alias has this name."""
    return _has_model(connection, name) or _model_of(connection, name) is not None


def _changeable(provider: Provider) -> dict[str, object]:
    is_agents = provider.dialect == AGENT_DIALECT
    if is_agents and provider.base_url:
        raise InvalidValue("a provider with the dialect `agent` has no base URL")
    if is_agents and (provider.max_in_flight is not None or provider.apis is not None):
        raise InvalidValue(
            "agents say themselves what they take: no limit and no APIs are set here"
        )
    is_a_setting = provider.name == provider.dialect == LLMD and not provider.base_url
    return {
        "base_url": "" if is_agents or is_a_setting else normalise(provider.base_url),
        "key_env": None if provider.key_env is None else variable(provider.key_env),
        "max_in_flight": in_flight_limit(provider.max_in_flight),
        "apis": api_names(provider.apis),
    }


def _columns(deployment: DeploymentEntry) -> dict[str, object]:
    return {
        "provider": deployment.provider,
        "upstream_name": model_name(deployment.upstream_name, "upstream name"),
        "priority": deployment.priority,
        "weight": share(deployment.weight),
        "context_tokens": deployment.context_tokens,
        "capabilities": list(deployment.capabilities),
        **time_limits(deployment.limits),
        **cluster_fields(deployment),
    }


def _has_model(connection: Connection, model: str) -> bool:
    return connection.scalar(select(models.c.id).where(models.c.id == model)) is not None


def _is_deployed(connection: Connection, model: str, provider: str) -> bool:
    found = select(deployments.c.model).where(
        deployments.c.model == model, deployments.c.provider == provider
    )
    return connection.scalar(found) is not None


def _model_of(connection: Connection, alias: str) -> str | None:
    found: str | None = connection.scalar(
        select(alias_table.c.model).where(alias_table.c.alias == alias)
    )
    return found


def _refuse_alias(connection: Connection, name: str) -> None:
    owner = _model_of(connection, name)
    if owner is not None:
        raise NameTaken(f"{name!r} is an alias of {owner!r} already")
