"""The router's nouns: values, without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, NamedTuple, NewType

import msgspec
from msgspec import Raw

from shared.contracts.agents import Heartbeat, Registration
from shared.contracts.apis import DEFAULT_APIS, paths_of
from shared.http.transport import Timeouts

EndpointId = NewType("EndpointId", str)
ModelName = NewType("ModelName", str)
KeyId = NewType("KeyId", str)


class Zone(str, Enum):
    """Where a request's text may go."""

    LOCAL = "local"
    CLUSTER = "cluster"
    CLOUD = "cloud"


HeaderStyle = Literal["current", "legacy", "both"]
"""Which names llm-d's own headers have: they were renamed in its v0.9."""


class Scope(str, Enum):
    """What a key may do."""

    INFERENCE = "inference"
    ADMIN = "admin"
    AGENT = "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """What only the gateway of an llm-d cluster has.

    `metrics_url` is where its endpoint picker tells how much waits. `model_header` is the name of the
    header by which it chooses among several pools.
    """

    metrics_url: str | None = None
    model_header: str | None = None
    header_style: HeaderStyle = "current"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address that serves at least one model now.

    `base_url` ends before `/chat/completions` (`https://api.openai.com/v1`). `credential` goes to
    the origin of `base_url` only. `incarnation` tells the starts of an agent apart; others have none.
    `timeouts` are limits of its own, in place of the router's. `gateway`: there is an llm-d cluster
    behind it; its probes tell which models it serves.
    """

    id: EndpointId
    base_url: str
    backend: str
    zone: Zone
    credential: str | None = field(default=None, repr=False)
    incarnation: int | None = None
    timeouts: Timeouts | None = None
    gateway: Gateway | None = None

    @property
    def is_agent(self) -> bool:
        """Tell whether a local agent is there."""
        return self.incarnation is not None

    @property
    def is_watched(self) -> bool:
        """Tell whether more than the registry says how it stands: a lease, or its probes."""
        return self.incarnation is not None or self.gateway is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimits:
    """How long parts of an attempt may take, in seconds; None: as the router's settings say.

    To connect, until the first byte of the answer, between two chunks of it, and all in all.
    """

    connect_s: float | None = None
    first_byte_s: float | None = None
    idle_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Latencies that llm-d's pickers are to aim at, in ms, if they have plug-ins for that; None: none.

    Until the first token, and for each one after it.
    """

    ttft_ms: int | None = None
    tpot_ms: int | None = None


DEFAULT_PATHS: Final = paths_of(DEFAULT_APIS)
LLMD: Final = "llmd"
"""The dialect of llm-d's gateways, and the name of the provider whose address is `LLMD_ENDPOINT`."""
LONGEST_MODEL: Final = 256
_DEFAULT_TIMEOUTS: Final = Timeouts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model on an endpoint: what to call it there, and how it ranks among its siblings.

    `paths` are the routes that it serves. `timeouts` hold for whole answers, `stream_timeouts` for
    streams, which have no total limit. `max_in_flight` is how many requests its `pool` takes at
    once (None: no limit); all deployments with the same pool share its places. `is_loaded`: it can
    serve at once, as far as is known. `objective`, `base_model` and `slo` are llm-d's: see
    `DeploymentEntry`.
    """

    endpoint: Endpoint
    upstream_name: str
    priority: int = 100
    weight: float = 1.0
    context_tokens: int | None = None
    capabilities: tuple[str, ...] = ()
    paths: frozenset[str] = DEFAULT_PATHS
    timeouts: Timeouts = _DEFAULT_TIMEOUTS
    stream_timeouts: Timeouts = _DEFAULT_TIMEOUTS
    pool: str = ""
    max_in_flight: int | None = None
    is_loaded: bool = True
    objective: str | None = None
    base_model: str | None = None
    slo: Slo = Slo()


# Values that are made for each request are msgspec's structs: a frozen dataclass takes ten times as
# long to make.


class Load(msgspec.Struct, frozen=True):
    """What an endpoint carries: our own requests in flight, and what it said of its queue."""

    in_flight: int = 0
    queued: int = 0


class Candidate(msgspec.Struct, frozen=True):
    """A deployment eligible for this request, with its endpoint's load."""

    deployment: Deployment
    load: Load
    is_suspect: bool = False


class RequestFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What routing may know of a request; never its text."""

    request_id: str
    model: ModelName
    stream: bool
    path: str
    key_id: KeyId | None = None
    zone: Zone | None = None


class Call(msgspec.Struct, frozen=True):
    """A request on its way: facts, the decoded top level of the body, headers to pass on.

    `path` in the facts is relative to the API base (`/chat/completions`). `body` maps each
    top-level key to its raw JSON; the backend replaces `model` and encodes it. `wait_s` is for how long
    an agent may keep it waiting for a load or a slot (None: as long as it does by itself).
    """

    facts: RequestFacts
    body: Mapping[str, Raw]
    headers: tuple[tuple[str, str], ...] = ()
    wait_s: float | None = None


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that an endpoint says it serves; `base_model` is what an adapter (LoRA) was made for."""

    id: str
    created_at: int = 0
    context_tokens: int | None = None
    base_model: str | None = None


class KnownModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a cluster was seen to serve, and for how long, in s, its lists have lacked it."""

    cluster: str
    model: ServedModel
    missing_s: int = 0


class ForgottenName(NamedTuple):
    """A name that somebody let go, of those that a cluster is known for; `at`: in s since 1970."""

    cluster: str
    model: str
    at: int


class ModelsChange(msgspec.Struct, frozen=True, kw_only=True):
    """What changed of the models that are known of one cluster; `gone` are names, `heard` what was let go by then."""

    cluster: str
    known: tuple[KnownModel, ...] = ()
    gone: tuple[str, ...] = ()
    heard: frozenset[ForgottenName] = frozenset()


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint answered to a probe.

    `is_accepted`: it gave what it was asked for, which it does not where it refuses the credential.
    `is_refused`: a cluster did not because of the credential, and of nothing else.
    `models`: what it serves; None: it does not say. `is_cold`: it can be reached, but has nothing that
    could serve. `queued`: how many requests wait there; None: it does not say.
    """

    is_accepted: bool = True
    is_refused: bool = False
    models: tuple[ServedModel, ...] | None = None
    is_cold: bool = False
    queued: int | None = None


class Ranked(msgspec.Struct, frozen=True):
    """One place in a policy's ranking, with the reason that `x-iir-reason` shows."""

    candidate: Candidate
    reason: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one attempt. Times in seconds; `error` is an error code or None.

    `cached_tokens` are those of `input_tokens` that the endpoint had in its cache of prefixes.

    A request that ended outside of any attempt (refused, or its client left the queue) has one
    outcome with `attempt` 0 and no endpoint, besides those of the attempts before, if there were any.
    """

    endpoint: EndpointId
    attempt: int
    status: int
    ttft_s: float | None
    total_s: float
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    cached_tokens: int | None = None


def is_model_name(value: object) -> bool:
    """Tell whether clients could send `value` as `model`. Slashes are fine."""
    if not isinstance(value, str) or not 1 <= len(value) <= LONGEST_MODEL:
        return False
    return all(c.isprintable() and not c.isspace() for c in value)


# ── the registry's snapshot ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A third party as data. `dialect` names a backend; `agent` stands for all leased agents.

    `max_in_flight` is how many requests its endpoint takes at once (None: no limit). `apis` are
    those of `APIS` that it speaks (None: what its dialect does by default). Agents have no `base_url`,
    nor has the cluster whose address is a setting.
    """

    name: str
    dialect: str
    base_url: str
    zone: Zone
    key_env: str | None = None
    max_in_flight: int | None = None
    apis: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model as the registry has it: public id, aliases and where it is deployed."""

    id: ModelName
    aliases: tuple[str, ...] = ()
    created_at: int = 0
    deployments: tuple[DeploymentEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentEntry:
    """A deployment row: provider by name.

    `objective` is the name of llm-d's InferenceObjective for its requests. `base_model` is what it goes
    by where llm-d chooses among several pools (the model that an adapter was made for); None: its
    upstream name. `slo` is what its pickers are to aim at.
    """

    provider: str
    upstream_name: str
    priority: int = 100
    weight: float = 1.0
    context_tokens: int | None = None
    capabilities: tuple[str, ...] = ()
    limits: TimeLimits = TimeLimits()
    objective: str | None = None
    base_model: str | None = None
    slo: Slo = Slo()


@dataclass(frozen=True, slots=True)
class PrefixRule:
    """Unknown models whose name starts with `prefix` go to `provider` under their own name."""

    prefix: str
    provider: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as the registry keeps it: public prefix and SHA-256 of the whole key, in hex.

    `is_next`: an agent's credential that takes the place of its present one when it is used.
    """

    id: KeyId
    name: str
    prefix: str
    digest: str = field(repr=False)
    scopes: frozenset[Scope]
    agent: str | None = None
    is_next: bool = False


@dataclass(frozen=True, slots=True)
class ShownCredential:
    """An agent's row, and the public prefix of which of its credentials it showed."""

    row_id: int
    prefix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """Everything that requests read, at one version. Immutable; swapped whole.

    `keys` maps a key's public prefix to the key; agents' credentials are among them, with the
    scope `agent` and the agent's row id in `agent`. `is_open` is true as long as no inference or
    admin key was ever made. `forgotten` are names of clusters that somebody let go, and no list has brought back.
    """

    version: int = 0
    providers: Mapping[str, Provider] = field(default_factory=dict)
    models: tuple[ModelEntry, ...] = ()
    prefix_rules: tuple[PrefixRule, ...] = ()
    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    forgotten: tuple[ForgottenName, ...] = ()
    is_open: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """An agent as the registry keeps it: whom its credential belongs to, and what it last said.

    `agent_id` is bound at the first registration with the credential. `lease_id` is None once the
    agent gave its lease back. `heartbeat` is the last that was written, if any since registering, and
    `renewed_at` when that was, in s since 1970.
    """

    row_id: int
    name: str
    agent_id: str | None = None
    registration: Registration | None = None
    lease_id: str | None = None
    heartbeat: Heartbeat | None = None
    renewed_at: int | None = None


@dataclass(frozen=True, slots=True)
class LeaseBook:
    """All agents' records at one lease version."""

    version: int = 0
    agents: tuple[AgentRecord, ...] = ()
