"""Filling the registry from a document: the packaged one, or a user's."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, insert, select

from router.domain import DeploymentEntry, PrefixRule, Provider, Slo, TimeLimits, Zone
from router.store.catalog import (
    add_alias,
    add_model,
    add_prefix_rule,
    add_provider,
    has_prefix_rule,
    has_provider,
    is_name_taken,
)
from router.store.errors import InvalidValue
from router.store.prepare import PACKAGED
from router.store.tables import meta

_MOST_BYTES = 4 * 1024 * 1024


class _Strict(BaseModel):
    # YAML's own types are taken as they are: a model `1` must be written "1".
    model_config = ConfigDict(extra="forbid", frozen=True)


class SeedProvider(_Strict):
    """A provider; `base_url` is needed unless the dialect is `agent`."""

    name: str
    dialect: str = "openai"
    base_url: str = ""
    zone: Zone = Zone.CLOUD
    key_env: str | None = None
    max_in_flight: int | None = None
    apis: tuple[str, ...] | None = None


class SeedRule(_Strict):
    """A prefix rule."""

    prefix: str
    provider: str


class SeedDeployment(_Strict):
    """A deployment; `upstream_name` is the model's id unless given."""

    provider: str
    upstream_name: str | None = None
    priority: int = 100
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    context_tokens: int | None = Field(default=None, ge=1)
    capabilities: tuple[str, ...] = ()
    connect_s: float | None = None
    first_byte_s: float | None = None
    idle_s: float | None = None
    total_s: float | None = None
    objective: str | None = None
    base_model: str | None = None
    slo_ttft_ms: int | None = None
    slo_tpot_ms: int | None = None


class SeedModel(_Strict):
    """A model with its aliases and at least one deployment."""

    id: str
    aliases: tuple[str, ...] = ()
    deployments: tuple[SeedDeployment, ...] = Field(min_length=1)


class SeedDocument(_Strict):
    """A seed file. Unknown keys are errors."""

    providers: tuple[SeedProvider, ...] = ()
    models: tuple[SeedModel, ...] = ()
    prefix_rules: tuple[SeedRule, ...] = ()


def read_seed(path: Path = PACKAGED) -> SeedDocument:
    """Return the document in a YAML file.

    Raises:
        InvalidValue: the file can't be read, or its content is no seed document.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidValue("the seed file is too big to be one")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return SeedDocument.model_validate({} if content is None else content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise InvalidValue(f"the seed file is not valid: {where}: {first['msg']}") from None
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidValue(f"the seed file is no YAML{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise InvalidValue("the seed file is no YAML text in UTF-8") from None
    except OSError as error:
        raise InvalidValue(f"the seed file can't be read: {error.strerror}") from None


def seed(connection: Connection, document: SeedDocument, *, only_once: bool = False) -> int:
    """Add what `document` names and the registry lacks; nothing that is there is changed.

    Args:
        connection: inside a transaction.
        document: what to add.
        only_once: skip what this function has ever added with `only_once`. So the packaged
            document, applied at each start, never brings back what the user removed.

    Returns:
        How many entries were added.

    Raises:
        Refusal: an entry contradicts the registry, or names a provider that is not there.
    """
    return sum(_add_if_missing(connection, entry, only_once) for entry in _entries(document))


def _entries(document: SeedDocument) -> list[SeedProvider | SeedModel | SeedRule]:
    return [*document.providers, *document.models, *document.prefix_rules]


def _add_if_missing(
    connection: Connection, entry: SeedProvider | SeedModel | SeedRule, only_once: bool
) -> bool:
    if only_once and not _mark(connection, entry):
        return False
    if isinstance(entry, SeedProvider):
        return _add_provider(connection, entry)
    if isinstance(entry, SeedModel):
        return _add_model(connection, entry)
    return _add_rule(connection, entry, only_once)


def _mark(connection: Connection, entry: SeedProvider | SeedModel | SeedRule) -> bool:
    """Note that `entry` was seeded; False if it was before."""
    if isinstance(entry, SeedProvider):
        key = f"seeded:provider:{entry.name}"
    elif isinstance(entry, SeedModel):
        key = f"seeded:model:{entry.id}"
    else:
        key = f"seeded:prefix_rule:{entry.prefix}"
    if connection.scalar(select(meta.c.key).where(meta.c.key == key)):
        return False
    connection.execute(insert(meta).values(key=key, value="1"))
    return True


def _add_provider(connection: Connection, entry: SeedProvider) -> bool:
    if has_provider(connection, entry.name):
        return False
    add_provider(
        connection,
        Provider(
            name=entry.name,
            dialect=entry.dialect,
            base_url=entry.base_url,
            zone=entry.zone,
            key_env=entry.key_env,
            max_in_flight=entry.max_in_flight,
            apis=entry.apis,
        ),
    )
    return True


def _add_model(connection: Connection, entry: SeedModel) -> bool:
    if is_name_taken(connection, entry.id):
        return False
    for place in entry.deployments:
        add_model(
            connection,
            entry.id,
            DeploymentEntry(
                provider=place.provider,
                upstream_name=place.upstream_name or entry.id,
                priority=place.priority,
                weight=place.weight,
                context_tokens=place.context_tokens,
                capabilities=place.capabilities,
                limits=TimeLimits(
                    connect_s=place.connect_s,
                    first_byte_s=place.first_byte_s,
                    idle_s=place.idle_s,
                    total_s=place.total_s,
                ),
                objective=place.objective,
                base_model=place.base_model,
                slo=Slo(ttft_ms=place.slo_ttft_ms, tpot_ms=place.slo_tpot_ms),
            ),
        )
    for alias in entry.aliases:
        if not is_name_taken(connection, alias):
            add_alias(connection, alias, entry.id)
    return True


def _add_rule(connection: Connection, entry: SeedRule, only_once: bool) -> bool:
    if has_prefix_rule(connection, entry.prefix):
        return False
    if only_once and not has_provider(connection, entry.provider):
        # The user removed the provider before the rule came with an update.
        return False
    add_prefix_rule(connection, PrefixRule(entry.prefix, entry.provider))
    return True
