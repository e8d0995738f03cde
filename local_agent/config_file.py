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

from local_agent.config import IN_CONTAINERS, OF_FOLDERS, WITHOUT_WEIGHTS, AgentConfig, ModelConfig
from local_agent.domain import Deployment, ModelId
from local_agent.engines import AUTO
from local_agent.variables import UsedVariables
from local_agent.weights.source import model_folder
from local_agent.weights.store import WeightStore
from local_agent.yaml_text import Document, Loc, YamlError, parse

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
    """The file can't be used. The message names file, line and field, and how to mend it.

    `line` starts at 1; `field` reads like `models[0].context`, and is empty for the whole file.
    """

    def __init__(self, file: str, rule: str, *, line: int | None = None, field: str = "") -> None:
        """Hold where it is wrong and which rule it breaks; no value of a variable is among them."""
        place = file if line is None else f"{file}, line {line}"
        super().__init__(f"{place}: {field}: {rule}" if field else f"{place}: {rule}")
        self.file = file
        self.rule = rule
        self.line = line
        self.field = field


def load_config(
    path: Path | None, env: Mapping[str, str], *, may_be_missing: bool = False
) -> AgentConfig:
    """Read the agent's file and add the known models.

    Args:
        path: the file; None: the known models only.
        env: values for `${env.NAME}`.
        may_be_missing: whether a file that is not there stands for the known models.

    Raises:
        ConfigError: with the file's name, the line, the field and the rule.
    """
    if path is None:
        return parse_config("", env, name="(no file)", base=Path())
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(path.name, "is larger than 1 MiB")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError | NotADirectoryError):
            return load_config(None, env)
        reason = error.strerror or type(error).__name__
        raise ConfigError(path.name, f"can't be read: {reason}") from error
    except UnicodeDecodeError:
        raise ConfigError(path.name, "is not UTF-8 text") from None
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
    used = UsedVariables(env)
    try:
        document = parse(text)
        merged, order = _with_known(_fields(document, used))
        return AgentConfig.model_validate(merged, context={"base": base})
    except YamlError as error:
        line = error.line or (document.line_of(error.loc) if error.loc else None)
        raise ConfigError(name, error.message, line=line, field=_field(error.loc)) from None
    except ValidationError as error:
        loc, rule = _first(error, order)
        rule = used.hide(rule)
        raise ConfigError(
            name, rule[:1].lower() + rule[1:], line=document.line_of(loc), field=_field(loc)
        ) from None


def to_deployments(config: AgentConfig, weights: WeightStore) -> tuple[Deployment, ...]:
    """Return what the supervisor runs; weights that are not pulled are None, `auto` stays."""
    return tuple(
        Deployment(
            model=ModelId(model.id),
            engine=model.engine,
            aliases=model.aliases,
            weights=_folder_of_auto(model) or _weights(model, weights),
            # what was noted under another engine says nothing of this one
            pulled=weights.pulled(ModelId(model.id)) if model.engine in IN_CONTAINERS else None,
            context_tokens=model.context,
            parallel=model.parallel or 2,
            preload=model.preload,
            pin=model.pin,
            ttl_s=model.ttl,
            memory_mb=model.memory,
            weight=model.weight,
            external_url=model.url,
            external_parallel=model.parallel if model.is_external else None,
            max_queue=model.max_queue,
            queue_max_wait_s=model.queue_max_wait,
            priority=model.priority,
            upstream_name=model.upstream_name,
            apis=model.apis,
            options=dict(model.options),
        )
        for model in config.models
    )


def _weights(model: ModelConfig, weights: WeightStore) -> Path | None:
    if model.repository is not None:
        return weights.hub.find(model.repository)
    if not model.sources:
        return None
    found = model_folder(model.sources) if model.engine in OF_FOLDERS else None
    return found or weights.find(ModelId(model.id), [source.ref for source in model.sources])


def _folder_of_auto(model: ModelConfig) -> Path | None:
    """Return the folder that a model without a configured engine has for a source, if it has one."""
    return model_folder(model.sources) if model.engine == AUTO else None


def _fields(document: Document, variables: UsedVariables) -> dict[str, Any]:
    data = variables.fill({} if document.data is None else document.data)
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


def _first(error: ValidationError, order: list[int | None]) -> tuple[Loc, str]:
    """Return the place in the user's file of the first thing that is wrong, and the rule."""
    found = error.errors(include_input=False, include_url=False)[0]
    loc: Loc = found["loc"]
    if len(loc) > 1 and loc[0] == "models" and isinstance(loc[1], int):
        own = order[loc[1]] if loc[1] < len(order) else None
        loc = ("models", *(() if own is None else (own,)), *loc[2:])
    cause = found.get("ctx", {}).get("error")
    return loc, _RULES.get(found["type"], str(cause) if cause else found["msg"])


def _field(loc: Loc) -> str:
    """Return a place as one would write it: `models[0].context`."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in loc).lstrip(".")
