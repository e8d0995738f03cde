"""The agent's YAML file: which models this host can serve, by which engine, from which weights.

`default.yaml` beside this module holds the known models; a file of the user's adds to them:

- an entry with a new `id` adds a model
- an entry with a known model's `id` changes that model: the fields it names replace the known ones,
  the others stay; with another `source`, or an engine that needs none, the known source goes whole
- a name that the user's file gives to a model (id or alias) is taken from the known ones
- `known_models: false` drops all known models

`${env.NAME}` in a value is replaced by the environment variable. Unknown fields are errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from local_agent.config import WITHOUT_WEIGHTS, AgentConfig, ModelConfig
from local_agent.domain import Deployment, ModelId
from local_agent.weights.store import WeightStore
from local_agent.yaml_text import Document, Loc, YamlError, parse, substitute

_DEFAULT = Path(__file__).with_name("default.yaml")
_OF_SOURCE = ("source", "sha256", "size_bytes")
_MOST_BYTES = 1024 * 1024
_RULES = {
    "extra_forbidden": "is no field here",
    "missing": "is missing",
    "tuple_type": "must be a list",
    "dict_type": "must be fields with values",
    "model_type": "must be fields with values",
    "string_pattern_mismatch": (
        "may hold letters, digits and ._:/@+- and starts with a letter, a digit or _"
    ),
}


class ConfigError(Exception):
    """The file can't be used. The message names file, line and field, and how to mend it."""


def load_config(path: Path | None, env: Mapping[str, str]) -> AgentConfig:
    """Read the agent's file and add the known models.

    Args:
        path: the file, which must exist; None: the known models only.
        env: values for `${env.NAME}`.

    Raises:
        ConfigError: with the file's name, the line, the field and the rule.
    """
    if path is None:
        return parse_config("", env, name="(no file)", base=Path())
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path.name}: is larger than 1 MiB")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path.name}: can't be read: {reason}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path.name}: is not UTF-8 text") from None
    return parse_config(text, env, name=path.name, base=path.absolute().parent)


def parse_config(text: str, env: Mapping[str, str], *, name: str, base: Path) -> AgentConfig:
    """Read the text of an agent's file; like `load_config`.

    Args:
        text: YAML.
        env: values for `${env.NAME}`.
        name: what to call the file in messages.
        base: folder that relative paths in it start from.
    """
    document = Document(None, None)
    order: list[int | None] = []
    try:
        document = parse(text)
        merged, order = _with_known(_fields(document, env))
        return AgentConfig.model_validate(merged, context={"base": base})
    except YamlError as error:
        line = error.line or (document.line_of(error.loc) if error.loc else None)
        raise ConfigError(_where(name, line, error.loc) + error.message) from None
    except ValidationError as error:
        raise ConfigError(_first(error, document, order, name)) from None


def to_deployments(config: AgentConfig, weights: WeightStore) -> tuple[Deployment, ...]:
    """Return what the supervisor runs; weights that are not pulled are None, `auto` stays."""
    return tuple(
        Deployment(
            model=ModelId(model.id),
            engine=model.engine,
            aliases=model.aliases,
            weights=_weights(model, weights),
            context_tokens=model.context,
            parallel=model.parallel,
            preload=model.preload,
            pin=model.pin,
            ttl_s=model.ttl,
            memory_mb=model.memory,
            weight=model.weight,
            external_url=model.url,
            upstream_name=model.upstream_name,
            apis=model.apis,
            options=dict(model.options),
        )
        for model in config.models
    )


def _weights(model: ModelConfig, weights: WeightStore) -> Path | None:
    if not model.sources:
        return None
    return weights.find(ModelId(model.id), [source.ref for source in model.sources])


def _fields(document: Document, env: Mapping[str, str]) -> dict[str, Any]:
    data = substitute({} if document.data is None else document.data, env)
    if not isinstance(data, dict):
        raise YamlError("must be fields with values, like `models:`")
    return data


def _with_known(data: dict[str, Any]) -> tuple[dict[str, Any], list[int | None]]:
    """Merge the user's values over the known models; also return whose index each model has."""
    own = data.get("models") if data.get("models") is not None else []
    if not isinstance(own, list) or data.get("known_models", True) in {False, "false"}:
        return {**data, "models": own}, list(range(len(own) if isinstance(own, list) else 0))
    known = parse(_DEFAULT.read_text(encoding="utf-8")).data["models"]
    entries = {item["id"]: (i, item) for i, item in enumerate(own) if _has_id(item)}
    taken = {name for item in own for name in _names(item)}
    merged: list[Any] = []
    order: list[int | None] = []
    for model in known:
        index, entry = entries.get(model["id"], (None, {}))
        if index is None and model["id"] in taken:
            continue  # the user's file uses its id as an alias
        kept = [name for name in model.get("aliases", []) if name not in taken]
        merged.append({**_without_source(model, entry), "aliases": kept, **entry})
        order.append(index)
    for index, item in enumerate(own):
        if index not in order:
            merged.append(item)
            order.append(index)
    return {**data, "models": merged}, order


def _without_source(model: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Drop the known source where the user's entry brings its own or needs none."""
    if "source" not in entry and "url" not in entry and entry.get("engine") not in WITHOUT_WEIGHTS:
        return model
    return {key: value for key, value in model.items() if key not in _OF_SOURCE}


def _has_id(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("id"), str)


def _names(item: object) -> list[str]:
    if not isinstance(item, dict):
        return []
    aliases = item.get("aliases")
    names = [item.get("id"), *(aliases if isinstance(aliases, list) else [])]
    return [name for name in names if isinstance(name, str)]


def _first(error: ValidationError, document: Document, order: list[int | None], name: str) -> str:
    """Say the first thing that is wrong, at its place in the user's file."""
    found = error.errors(include_input=False, include_url=False)[0]
    loc: Loc = found["loc"]
    if len(loc) > 1 and loc[0] == "models" and isinstance(loc[1], int):
        own = order[loc[1]] if loc[1] < len(order) else None
        loc = ("models", *(() if own is None else (own,)), *loc[2:])
    cause = found.get("ctx", {}).get("error")
    rule = _RULES.get(found["type"], str(cause) if cause else found["msg"])
    return _where(name, document.line_of(loc), loc) + rule[:1].lower() + rule[1:]


def _where(name: str, line: int | None, loc: Loc) -> str:
    field = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc).lstrip(".")
    place = name if line is None else f"{name}, line {line}"
    return f"{place}: {field}: " if field else f"{place}: "
