"""The agent's settings: the only place of the agent that reads the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from shared.http.transports import TransportName
from shared.kit.environment import BaseServiceSettings

_MOST_URL = 512
_PYTHONS = "[!.]*/bin/python"  # of environments in the making the names begin with a dot


def _host_name() -> str:
    return socket.gethostname().split(".")[0] or "agent"


class AgentSettings(BaseServiceSettings):
    """Everything that can be set. `.env` and the environment use the names in upper case."""

    agent_host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. Beyond loopback every request needs the router's access "
        "token, and `AGENT_URL` must be set.",
    )
    agent_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port to listen on. Unset: 5000 or, if that is taken, the next free from 5055.",
    )
    agent_url: str | None = Field(
        default=None,
        description="URL under which the router reaches the agent. Default: its address and port.",
    )
    agent_public_routes: str = Field(
        default="",
        description="`metrics` lets everybody who reaches the agent read `/metrics`, for a Prometheus "
        "elsewhere. Unset: its router and programs on its own machine do.",
    )
    agent_name: str = Field(
        default_factory=_host_name,
        min_length=1,
        max_length=128,
        description="Label of the agent. Default: the host's name.",
    )
    agent_config: Path | None = Field(
        default=None, description="The agent's YAML file. Default: `$IIR_HOME/agent/agent.yaml`."
    )
    agent_token_file: Path | None = Field(
        default=None,
        description="File with the credential for the router. Default: `$IIR_HOME/agent/credential`.",
    )
    agent_load_wait_s: float = Field(
        default=60.0,
        ge=0,
        description="How long a request waits for its model to load before it gets 503, in seconds.",
    )
    agent_keep_alive_s: float = Field(
        default=15.0,
        ge=0,
        description="A streaming client of the agent that waits for its first event, since the model "
        "loads or the prompt is long, gets a comment after so many seconds, and again as often; 0 "
        "sends none.",
    )
    agent_drain_s: float = Field(
        default=60.0,
        ge=0,
        description="How long a stopping agent lets running requests finish, in seconds.",
    )
    agent_transport: TransportName = Field(
        default="lean",
        description="Which HTTP client speaks to engines: `lean`, our own, or `aiohttp`, which costs "
        "more CPU and memory.",
    )
    agent_images: str = Field(
        default="",
        description="Images that workers in containers may use beside vLLM's own, as `NAME:TAG`, "
        "separated by commas. They run as vLLM's do: only name what you trust.",
    )
    agent_pull: str = Field(
        default="",
        description="Models, separated by commas, whose weights the agent pulls by itself after its "
        "start, if they are not there.",
    )
    agent_worker_network: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,127})?$",
        description="Network of the container engine on which an agent that runs in a container reaches "
        "workers in other containers. Unset: they are published on the host's 127.0.0.1.",
    )
    agent_vllm_python: Path | None = Field(
        default=None,
        description="Interpreter of the Python environment that has vLLM, for the engine `vllm`. "
        "Default: `$IIR_HOME/engines/vllm/bin/python`, if it is there.",
    )
    router_url: str = Field(
        default="http://127.0.0.1:8000",
        description="The agent's router. Unset: the one that the agent has joined, else the default.",
    )
    router_ca_file: Path | None = Field(
        default=None,
        description="PEM file with the authorities that may vouch for the router's certificate, and "
        "no others do. Unset: the public ones, and those that the agent's system trusts.",
    )
    iir_join_token: SecretStr | None = Field(
        default=None,
        description="The token for `iir-agent join`, for scripts; nothing else reads it.",
    )
    hf_token: SecretStr | None = Field(
        default=None, description="Token for gated models of the Hugging Face hub."
    )
    hf_endpoint: str = Field(
        default="https://huggingface.co", description="The hub, or a mirror of it."
    )

    @field_validator("agent_url", "router_url")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            is_good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_good = False
        if not is_good or len(value) > _MOST_URL or not value.isprintable() or " " in value:
            raise ValueError("must be an address like http://127.0.0.1:8000")
        return value.rstrip("/")

    @property
    def config_path(self) -> Path:
        """Return the YAML file's path; it need not exist."""
        return (self.agent_config or self.iir_home / "agent" / "agent.yaml").expanduser()

    @property
    def token_path(self) -> Path:
        """Return the credential's path; it need not exist."""
        return (self.agent_token_file or self.iir_home / "agent" / "credential").expanduser()

    @property
    def memory_path(self) -> Path:
        """Return the file of what the agent has learnt of its models; it need not exist."""
        return self.iir_home / "agent" / "memory.json"

    @property
    def models_dir(self) -> Path:
        """Return the folder of the weights."""
        return self.iir_home / "models"

    @property
    def interpreters(self) -> Mapping[str, str]:
        """Return, by engine, the interpreters of those Python environments that are there."""
        found = {python.parents[1].name: python for python in self.engines_dir.glob(_PYTHONS)}
        if self.agent_vllm_python is not None:
            found["vllm"] = self.agent_vllm_python.expanduser()
        places = {name: str(python.absolute()) for name, python in found.items()}
        return {name: place for name, place in sorted(places.items()) if os.access(place, os.X_OK)}

    @property
    def engines_dir(self) -> Path:
        """Return the folder of the engines' Python environments."""
        return self.iir_home / "engines"

    @property
    def hub_environment(self) -> Mapping[str, str]:
        """Return what fetches repositories of the hub needs: its token and its mirror."""
        hub = {"HF_TOKEN": self.hf_token.get_secret_value()} if self.hf_token else {}
        if "hf_endpoint" in self.model_fields_set:
            hub["HF_ENDPOINT"] = self.hf_endpoint
        return hub

    @property
    def images(self) -> frozenset[str]:
        """Return the images that are allowed beside the known ones."""
        return frozenset(name.strip() for name in self.agent_images.split(",") if name.strip())

    @property
    def own_hosts(self) -> frozenset[str]:
        """Return the name in `AGENT_URL`, under which requests arrive."""
        host = urlsplit(self.agent_url or "").hostname
        return frozenset({host} if host else ())

    @property
    def public_routes(self) -> frozenset[str]:
        """Return the routes that need no token."""
        names = self.agent_public_routes.lower().split(",")
        return frozenset(name.strip() for name in names if name.strip())

    @property
    def pulled(self) -> tuple[str, ...]:
        """Return the models that the agent pulls by itself."""
        return tuple(name.strip() for name in self.agent_pull.split(",") if name.strip())

    def show(self, path: Path) -> str:
        """Return a path for people, without the folders above the installation."""
        is_inside = path.is_relative_to(self.iir_home)
        return f"$IIR_HOME/{path.relative_to(self.iir_home)}" if is_inside else path.name

    def environment(self) -> Mapping[str, str]:
        """Return the process's environment, for what hands parts of it on (engines, the YAML)."""
        return dict(os.environ)


def load_settings(**overrides: Any) -> AgentSettings:
    """Read the settings; `overrides` are flags and beat every other source (None: not given)."""
    return AgentSettings(**{name: value for name, value in overrides.items() if value is not None})
