"""The agent's nouns: values, without I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal, NewType

from shared.contracts.agents import Bench

ModelId = NewType("ModelId", str)
Guard = Literal["strict", "normal", "off"]
"""How much the machine's own memory counts beside the ledger: see `MachineRoom`."""

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
"""What a repository of the hub is called."""

MAX_QUEUE = 64
QUEUE_MAX_WAIT_S = 120.0
"""Bounds of a model's queue where its configuration gives none."""


class WorkerState(str, Enum):
    """Where a worker is in its life; "busy" is a number, not a state."""

    UNAVAILABLE = "unavailable"
    PULLING = "pulling"
    COLD = "cold"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    QUARANTINED = "quarantined"
    EXTERNAL = "external"


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledImage:
    """What was pulled for a worker in a container: an image, and a repository into its volume.

    `size_bytes` is the size of the repository's files that were pulled.
    """

    image: str
    repo: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model with its engine and options on this host.

    `weights` is a file below `$IIR_HOME/models`, the folder of a repository there, a model's folder where
    it lies, or None while they are not pulled (or when the engine needs none); `pulled` says the same of an
    engine in a container. `apis` are those of `APIS` that a server speaks which runs already (None: what
    most do). `options` are the engine's own, already validated. `memory_mb` is what it takes (None:
    it is estimated), `ttl_s` after how many idle seconds it goes (None: never), `weight` how dear its
    absence is. `parallel` are the requests that an engine of ours is started for, `external_parallel`
    those that somebody else's server gets at once (None: any number). `max_queue` requests may wait,
    each for `queue_max_wait_s` while the model serves; models of more `priority` get memory first.
    """

    model: ModelId
    engine: str
    aliases: tuple[str, ...] = ()
    weights: Path | None = None
    pulled: PulledImage | None = None
    context_tokens: int = 4096
    parallel: int = 2
    preload: bool = False
    pin: bool = False
    ttl_s: float | None = None
    memory_mb: int | None = None
    weight: float = 1.0
    external_url: str | None = None
    external_parallel: int | None = None
    max_queue: int = MAX_QUEUE
    queue_max_wait_s: float = QUEUE_MAX_WAIT_S
    priority: int = 0
    upstream_name: str | None = None
    apis: tuple[str, ...] | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def config_hash(self) -> str:
        """Name this configuration: two deployments with one hash need no restart between them."""
        text = repr(
            (
                self.engine,
                str(self.weights),
                self.context_tokens,
                self.parallel,
                self.external_url,
                self.upstream_name,
                sorted(self.options.items()),
            )
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """What is observed of one worker. Times are seconds of the agent's monotonic clock.

    `since` is when it entered its state; `failures` are the times of the recent ones, oldest first.
    `waiting` are requests in the agent, which were not sent yet.
    """

    state: WorkerState = WorkerState.COLD
    since: float = 0.0
    config_hash: str = ""
    failures: tuple[float, ...] = ()
    not_before: float = 0.0
    in_flight: int = 0
    waiting: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent:
    """One transition of one worker. `ts` is wall time, `seq` grows by one with each event."""

    seq: int
    ts: float
    worker: ModelId
    from_state: WorkerState
    to_state: WorkerState
    reason: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker as the status API and `iir-agent ps` show it.

    `in_flight` is what the agent sent it; `running` and `waiting` are all requests that its engine works
    on, or that wait there or in the agent, those of other clients included. `max_queue` may wait in the
    agent, the next one for about `expected_wait_s`. `memory_mb` is what it holds in the ledger; `ttl_s`
    after how many idle seconds it goes. A load takes about `expected_load_s`, as the last one did.
    """

    model: ModelId
    engine: str
    state: WorkerState
    pid: int | None
    in_flight: int
    since_s: float
    reason: str | None
    memory_mb: int = 0
    is_pinned: bool = False
    ttl_s: float | None = None
    expected_load_s: float = 0.0
    running: int = 0
    waiting: int = 0
    max_queue: int = 0
    expected_wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a ready model answers: `http://HOST:PORT/v1`, and the name it has there."""

    base_url: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What should be true of one deployment.

    `problem` says why it can't run on this host now; such a deployment is never started. `is_patient`:
    its worker makes room for another one, which is no reason to cut the work it has. `is_pulling`: a
    job pulls what it needs.
    """

    deployment: Deployment
    is_wanted: bool = False
    is_patient: bool = False
    is_pulling: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker for this deployment."""

    deployment: Deployment


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new work, finish the old."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Stop:
    """End the worker's process."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Reset:
    """Forget the failures of a worker that waits or is quarantined."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Disable:
    """Say why the worker can't run here."""

    model: ModelId
    reason: str


@dataclass(frozen=True, slots=True)
class Pull:
    """Say that a job pulls what the worker lacks."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Enable:
    """What kept the worker from running is gone."""

    model: ModelId


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop a worker that is neither wanted nor alive."""

    model: ModelId


Action = Start | Drain | Stop | Reset | Disable | Pull | Enable | Forget


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """Requests inside an engine, as its metrics tell."""

    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on this machine of a model in one configuration, the engine included.

    `is_old`: with another version of the engine than is here now.
    """

    model: ModelId
    config_hash: str
    figures: Bench
    is_old: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unended:
    """What is left of a worker of an earlier agent that nobody could end, and the memory that it held then."""

    model: str
    config_hash: str
    memory_mb: int


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What engines need to know of the host.

    `environments` names the Python environments that engines have to themselves here. `images` are
    images that the operator allows beside the known ones; `container_problem` says why no container
    can run, whatever the engine: None if one may. `machine` tells it from others in what was `measured`
    on it. `accelerator_mb` is what its accelerator lets programs have of its memory, as the device says;
    None: it has none of its own, or can't be asked. `has_metal` tells whether Metal has a device for programs
    of this host; None: nobody could tell.
    """

    platform: str
    arch: str
    memory_mb: int
    modules: frozenset[str] = frozenset()
    environments: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()
    container_problem: str | None = None
    machine: str = ""
    measured: tuple[Measured, ...] = ()
    accelerator_mb: int | None = None
    has_metal: bool | None = None

    @property
    def is_apple_silicon(self) -> bool:
        """Tell whether this is a Mac whose GPU shares its memory: an Intel Mac's has one of its own."""
        return self.platform == "darwin" and self.arch == "arm64"
