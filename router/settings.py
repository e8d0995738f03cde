"""The router's settings: the only place of the router that reads the environment."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import Field, PrivateAttr, ValidationError, field_validator

from router.domain import HeaderStyle
from shared.http.base_url import normalise
from shared.http.transport import Timeouts
from shared.http.transports import TransportName
from shared.kit.environment import BaseServiceSettings
from shared.kit.home import env_file

# A header of the gateway's own: not one that we or HTTP mean something by.
_OWN_HEADER: Final = re.compile(
    r"x-(?!request-id$|llm-d-|iir-|api-key$)[a-z0-9-]{1,62}", re.IGNORECASE
)


Stamp = tuple[int, int, int]
"""When `.env` was changed, how long it is, and which file it is."""


def stamp_now() -> Stamp | None:
    """Return what tells a state of `.env` from every other; None if there is none.

    Raises:
        OSError: whether there is one can't be told now.
    """
    try:
        found = env_file(os.environ.get("IIR_HOME")).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Settings(BaseServiceSettings):
    """Everything that can be set. `.env` and the environment use the names in upper case."""

    _flags: dict[str, Any] = PrivateAttr(default_factory=dict)
    _stamp: Stamp | None = PrivateAttr(default=None)
    _written: tuple[Stamp | None, dict[str, str | None]] = PrivateAttr(default=(None, {}))

    router_host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. Anything but loopback needs an API key in the registry.",
    )
    router_port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on.")
    web_concurrency: int = Field(default=1, ge=1, le=64, description="Worker processes.")
    sqlite_db_path: Path | None = Field(
        default=None, description="The registry's file. Default: `$IIR_HOME/models.db`."
    )
    database_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the registry; beats `SQLITE_DB_PATH`.",
        repr=False,
    )
    openai_base_url: str | None = Field(
        default=None,
        description="Base URL of the provider `openai`, in place of the registry's "
        "`https://api.openai.com`.",
    )
    llmd_endpoint: str | None = Field(
        default=None,
        description="Address of an llm-d cluster's gateway (`http://llm-d.llm-d.svc:8000`), with or "
        "without `/v1`. It makes the provider `llmd`, and what the cluster serves can be asked for. Unset: "
        "there is none. A router that runs takes what `.env` says of it at once.",
    )
    llmd_metrics_url: str | None = Field(
        default=None,
        description="Where that cluster's endpoint picker has its metrics (`http://llm-d-epp.llm-d.svc:9090`). "
        "Its queues then count when an endpoint is chosen. Unset: they do not.",
    )
    llmd_model_header: str | None = Field(
        default=None,
        description="Header by which llm-d's gateways choose among several pools "
        "(`X-Gateway-Base-Model-Name`). Unset: none is sent.",
    )
    llmd_headers: HeaderStyle = Field(
        default="current",
        description="How llm-d's own headers are called: `current` (`x-llm-d-…`), `legacy` (`x-gateway-…`, "
        "`x-slo-…`: its router before v0.9), or `both`, for clusters of either kind.",
    )
    llmd_queue_ttl_s: float = Field(
        default=60.0,
        ge=0,
        description="How long llm-d's flow control may hold a request (`defaultRequestTTL`), in seconds. So "
        "much longer than others' is the limit for the first byte of its endpoints.",
    )
    router_allowed_hosts: str = Field(
        default="",
        description="Names, separated by commas, that the Host header may carry besides loopback "
        "names and the address the router listens on; `*` allows all.",
    )
    router_cors_origins: str = Field(
        default="",
        description="Origins, separated by commas, whose web pages may call the router. None by default.",
    )
    router_public_routes: str = Field(
        default="",
        description="Which of `docs` and `metrics`, separated by commas, need no admin key once keys "
        "exist.",
    )
    router_agent_hosts: str = Field(
        default="",
        description="IP addresses and names, separated by commas, that agents may give as theirs "
        "although they call from another address.",
    )
    router_key_file: Path | None = Field(
        default=None,
        description="File for a first API key (scope `inference`), readable by its owner only. A router "
        "that starts and never had a key makes it, which ends open mode. Unset: none is made.",
    )
    router_agent_token_file: Path | None = Field(
        default=None,
        description="File for the credential of the agent `local`, which reads the same file by its "
        "`AGENT_TOKEN_FILE`. A router that starts makes it unless it is there, and lets that agent in. "
        "Unset: agents are invited.",
    )
    router_max_body_mb: int = Field(
        default=32, ge=1, le=1024, description="Largest request body, in MiB."
    )
    router_policy: Literal["power_of_two", "least_in_flight", "round_robin", "priority"] = Field(
        default="power_of_two",
        description="How an endpoint is chosen among those of the best priority.",
    )
    router_breaker_failures: int = Field(
        default=5,
        ge=1,
        le=1_000_000,
        description="Failures in a row after which an endpoint, or a model on it, is spared for a "
        "moment.",
    )
    router_deadline_s: float = Field(
        default=600.0,
        gt=0,
        description="Limit from a request's arrival to its first byte, all attempts together, in "
        "seconds.",
    )
    router_attempts: int = Field(
        default=2, ge=1, le=10, description="Attempts per request, on different endpoints."
    )
    router_retry_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Further attempts that a router makes in a storm of failures, as a share of its "
        "requests.",
    )
    router_connect_timeout_s: float = Field(
        default=5.0, gt=0, description="Limit for connecting to an upstream, in seconds."
    )
    router_first_byte_timeout_s: float = Field(
        default=300.0,
        gt=0,
        description="Limit from sending a request to the upstream's first byte, in seconds.",
    )
    router_idle_timeout_s: float = Field(
        default=120.0, gt=0, description="Limit between two chunks of an upstream, in seconds."
    )
    router_total_timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="Limit for an attempt whose answer is no stream, from its start to its last byte, "
        "in seconds. Streams have none, unless their deployment does.",
    )
    router_keep_alive_s: float = Field(
        default=15.0,
        ge=0,
        description="A streaming client that waits for its first event gets a comment after so many "
        "seconds, and again as often; 0 sends none.",
    )
    router_queue: int = Field(
        default=256,
        ge=0,
        le=100_000,
        description="How many requests may wait for one endpoint that has a limit.",
    )
    router_queue_s: float = Field(
        default=30.0, gt=0, description="How long a request may wait for an endpoint, in seconds."
    )
    router_probe_s: float = Field(
        default=10.0,
        ge=0,
        description="How often endpoints without a lease are asked whether they answer, in seconds; "
        "those in a cloud only while their breaker is open, others then twice a second. 0 asks never.",
    )
    router_transport: TransportName = Field(
        default="lean",
        description="Which HTTP client speaks to upstreams: `lean`, our own, or `aiohttp`, which costs "
        "more CPU and memory.",
    )
    router_catalog_poll_s: float = Field(
        default=0.25,
        gt=0,
        description="How often a router looks for changes of the registry, and of `LLMD_ENDPOINT` in `.env`, in "
        "seconds.",
    )
    router_lease_ttl_s: float = Field(
        default=30.0,
        gt=0,
        description="How long an agent's lease lasts without a heartbeat, in seconds.",
    )
    router_lease_renew_s: float = Field(
        default=10.0,
        gt=0,
        description="How often agents are asked to send a heartbeat, in seconds.",
    )
    router_drain_s: float = Field(
        default=30.0,
        ge=0,
        description="How long a stopping router lets running requests finish, in seconds.",
    )

    @field_validator("router_host")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return value.strip().strip("[]") or "127.0.0.1"

    @field_validator("llmd_endpoint")
    @classmethod
    def _is_gateway(cls, value: str | None) -> str | None:
        return None if value is None else _bare_url(value, "/v1")

    @field_validator("llmd_metrics_url")
    @classmethod
    def _is_metrics(cls, value: str | None) -> str | None:
        return None if value is None else f"{_bare_url(value, '/metrics')}/metrics"

    @field_validator("llmd_model_header")
    @classmethod
    def _is_header(cls, value: str | None) -> str | None:
        if value is not None and not _OWN_HEADER.fullmatch(value.strip()):
            raise ValueError("it must be the name of a header like X-Gateway-Base-Model-Name")
        return None if value is None else value.strip().lower()

    @field_validator("router_key_file", "router_agent_token_file")
    @classmethod
    def _is_expanded(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser()

    @classmethod
    def by(cls, flags: dict[str, Any]) -> Settings:
        """Read the settings; flags beat every other source, now and when one is read again."""
        stamp = None
        with suppress(OSError):
            stamp = stamp_now()  # before: what is written from here on is another state
        found = cls(**flags)
        found._flags, found._stamp = flags, stamp
        return found

    @property
    def store_url(self) -> str:
        """Return the registry's SQLAlchemy URL."""
        if self.database_url:
            return self.database_url
        path = self.sqlite_db_path or self.iir_home / "models.db"
        return f"sqlite:///{path.expanduser().absolute()}"

    @property
    def timeouts(self) -> Timeouts:
        """Return the time limits of endpoints that have none of their own."""
        return Timeouts(
            connect_s=self.router_connect_timeout_s,
            first_byte_s=self.router_first_byte_timeout_s,
            idle_s=self.router_idle_timeout_s,
            total_s=self.router_total_timeout_s,
        )

    @property
    def stamp(self) -> Stamp | None:
        """Return the state of `.env` when this was loaded."""
        return self._stamp

    def stamp_now(self) -> Stamp | None:
        """Return its state now; raises `OSError` if that can't be told."""
        return stamp_now()

    def llmd_endpoint_now(self) -> str | None:
        """Return the address of the provider `llmd` as flags, environment and `.env` have it now.

        Raises:
            ValueError: one of the settings has a form that is not taken.
            OSError: `.env` can't be read.
        """
        try:
            return self.by(self._flags).llmd_endpoint
        except ValidationError as error:
            raise ValueError(explained(error)) from None

    def credential(self, variable: str) -> str | None:
        """Return the value of `variable` (`EXTERNAL_OPENAI_KEY`) from environment or `.env`."""
        value = os.environ.get(variable) or self._in_file(variable)
        return value.strip() or None if value else None

    def _in_file(self, variable: str) -> str | None:
        """Return what `.env` says; while it can't be read, what it said before.

        It is parsed once per change: that takes milliseconds, and each catalog asks for each credential.
        """
        with suppress(OSError, ValueError):
            stamp = stamp_now()
            if stamp != self._written[0]:
                self._written = stamp, dotenv_values(env_file(os.environ.get("IIR_HOME")))
        return self._written[1].get(variable)


def _bare_url(value: str, ending: str) -> str:
    """Return a URL without its path, which may only be `ending`; without a scheme it is http."""
    text = value.strip()
    try:
        url = normalise(text if "://" in text else f"http://{text}", "address")
    except ValueError as error:
        raise ValueError(f"{error}; write it as http://HOST:PORT") from None
    bare = url.removesuffix(ending)
    if urlsplit(bare).path:
        raise ValueError(
            f"the address must end after host and port, or with {ending}; write it as http://HOST:PORT"
        )
    return bare


def explained(error: ValidationError) -> str:
    """Return in one line which setting has a form that is not taken, and why."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = "_".join(str(part) for part in first["loc"]).upper()
    message = first["msg"].removeprefix("Value error, ")
    return f"the setting {name} is not valid: {message}"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; `overrides` are flags and beat every other source (None: not given)."""
    return Settings.by({name: value for name, value in overrides.items() if value is not None})
