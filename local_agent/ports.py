"""Every seam of the local agent, in one place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from local_agent.domain import Deployment, EngineLoad, HostFacts, Unended


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What a container gets beside arguments and environment: all of it from an engine's description.

    `port` is the one inside, published on 127.0.0.1 at most. `volumes` are named ones by their place
    inside: no folder of the host gets in. `repo` is what has to be pulled into them before the start:
    a repository of the hub.
    """

    image: str
    port: int
    repo: str = ""
    volumes: Mapping[str, str] = field(default_factory=dict)
    shm_bytes: int = 64 * 1024 * 1024
    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int = 4096
    capabilities: tuple[str, ...] = ()
    security: tuple[str, ...] = ()
    has_gpus: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start an engine: a program with its arguments, never a shell line.

    `cwd` keeps host paths out of the engine's own log: weights are given relative to it. With a
    `container`, `argv` are the arguments of its entry point; with an `environment`, which is one of
    `HostFacts.environments`, those of its interpreter.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    container: ContainerSpec | None = None
    environment: str | None = None


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """A GET that answers 200 once the engine can serve."""

    path: str = "/health"
    timeout_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker that an earlier agent left has to be: its configuration, and its launch on a port."""

    config_hash: str
    launch: Callable[[int], Launch | None]


@dataclass(frozen=True, slots=True)
class Left:
    """A worker that an earlier agent left running on a port of 127.0.0.1.

    One that `must_serve` is of no use while it does not serve yet.
    """

    port: int
    must_serve: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an engine's own Python environment is made of.

    `requirements` are pip's, with exact versions; what those bring along pip chooses. `places` are pages with
    links to packages that no index has, `modules` have to be importable at the end. `size_mb` is what the environment takes, `pythons` are the versions
    that all of it has packages for, the best first.
    """

    requirements: tuple[str, ...]
    pythons: tuple[str, ...]
    modules: tuple[str, ...]
    size_mb: int
    places: tuple[str, ...] = ()


class Engine(Protocol):
    """Describes an inference program. Pure, no I/O: every method is a table test."""

    def needs_weights(self, deployment: Deployment) -> bool:
        """Tell whether it can't run before something was pulled."""
        ...

    def unsupported_reason(self, host: HostFacts, deployment: Deployment) -> str | None:
        """Say why this host can't run the deployment, with the fix; None if it can."""
        ...

    def launch(self, deployment: Deployment, port: int) -> Launch | None:
        """Return how to start it on 127.0.0.1:`port`; None if it is never started (external)."""
        ...

    def readiness(self) -> HttpProbe:
        """Return the probe that tells when it serves."""
        ...

    def upstream_name(self, deployment: Deployment) -> str:
        """Return the model name that the engine expects in a request."""
        ...

    def apis(self, deployment: Deployment) -> tuple[str, ...]:
        """Return which of `shared.contracts.apis.APIS` it speaks."""
        ...

    def max_in_flight(self, deployment: Deployment) -> int | None:
        """Return how many requests it works on at once; None if that is not known."""
        ...

    def parse_load(self, metrics: str) -> EngineLoad:
        """Read the load from the engine's Prometheus text; zeros where it tells nothing."""
        ...


@runtime_checkable
class Installable(Protocol):
    """An engine whose Python environment `iir-agent engines install` makes. Pure, no I/O."""

    def recipe(self, host: HostFacts) -> Recipe | str:
        """Return what it is made of on this host; a text says why it can't run here, with the fix."""
        ...


class Process(Protocol):
    """A started engine, with everything it started itself."""

    @property
    def pid(self) -> int:
        """Return the process id of the leader; for a container the one that its engine tells."""
        ...

    @property
    def host(self) -> str:
        """Return 127.0.0.1 but for a container beside an agent that is in one itself."""
        ...

    @property
    def port(self) -> int:
        """Return its port there: an adopted one has its own, not the one asked for."""
        ...

    @property
    def is_adopted(self) -> bool:
        """Tell whether an earlier agent started it."""
        ...

    @property
    def exit_cause(self) -> str | None:
        """Say why it ended where more is known than its exit code and log tell; else None."""
        ...

    async def wait(self) -> int:
        """Return the exit code once it has ended, -1 if nobody can know it; several tasks may wait."""
        ...

    async def stop(self, grace_s: float) -> str | None:
        """SIGTERM to the whole group, SIGKILL after `grace_s`; return when all of it is gone.

        What can't be ended is left, with its memory: return why then, else None.
        """
        ...

    async def is_gone(self) -> bool:
        """Tell whether nothing of it is left that could hold memory; for one that could not be ended."""
        ...

    def log_tail(self, lines: int) -> list[str]:
        """Return the last lines that it wrote."""
        ...


class HttpProber(Protocol):
    """Asks an engine whether it serves, and what it has to do."""

    async def ok(self, url: str, timeout_s: float) -> bool:
        """Tell whether a GET of `url` answers 200 within `timeout_s`; never raises."""
        ...

    async def answers(self, url: str, body: bytes, timeout_s: float) -> bool:
        """Tell whether a POST of this JSON is answered in time, by anything but a 5xx; never raises."""
        ...

    async def text(self, url: str, timeout_s: float, most_bytes: int) -> str | None:
        """Return what a GET of `url` answers; None if that is no 200, too late or too long. Never raises."""
        ...


class ProcessLauncher(Protocol):
    """Starts processes and remembers them on disk, so that a later agent finds them."""

    async def launch(self, name: str, launch: Launch, *, config_hash: str, port: int) -> Process:
        """Start a process in a group of its own, or a container; its output goes to a bounded log file.

        What an earlier agent left running with the same configuration may be taken over instead: what
        `left_running` has found, and `reap_orphans` was told to keep.

        Raises:
            OSError: the program can't be started.
        """
        ...

    async def left_running(self, wanted: Mapping[str, Wanted]) -> dict[str, Left]:
        """Return which of the workers still run as they are wanted, so that `launch` would take them over."""
        ...

    async def reap_orphans(self, keep: Collection[str] = ()) -> list[str]:
        """End what an earlier agent started and left; return the names of what was ended.

        Args:
            keep: names of workers that are to be taken over.
        """
        ...

    async def unended(self) -> Mapping[str, Unended]:
        """Return what `reap_orphans` could not end and still lives, by a name of its own."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerView:
    """One container as its engine shows it."""

    id: str
    labels: Mapping[str, str]
    is_running: bool
    pid: int = 0
    exit_code: int = 0
    is_out_of_memory: bool = False
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Its IP address in each of its networks."""


class ContainerError(OSError):
    """A container engine did not do what was asked; `strerror` says why, with the next step.

    `is_outside` tells that the cause is not the worker's, so that trying again is always worth it.
    """

    def __init__(
        self, reason: str, *, is_unreachable: bool = False, is_outside: bool = False
    ) -> None:
        super().__init__(0, reason)
        self.is_unreachable = is_unreachable
        self.is_outside = is_outside or is_unreachable


class ContainerClient(Protocol):
    """A container engine. Every call blocks: call it in a thread.

    All of them raise `ContainerError`.
    """

    def find(self, labels: Mapping[str, str]) -> list[ContainerView]:
        """Return the containers with all these labels, ended ones included."""
        ...

    def look(self, container: str) -> ContainerView | None:
        """Return one by its id; None if it is gone."""
        ...

    def start(
        self,
        name: str,
        launch: Launch,
        *,
        env: Mapping[str, str],
        labels: Mapping[str, str],
        port: int,
    ) -> str:
        """Make and start a container and return its id.

        It is published on 127.0.0.1:`port`, unless workers are reached on a network of theirs.
        """
        ...

    def run_program(
        self,
        name: str,
        spec: ContainerSpec,
        program: str,
        *,
        env: Mapping[str, str],
        labels: Mapping[str, str],
    ) -> str:
        """Start a Python program in a container of the spec's image, with its volumes; return its id.

        The program takes the place of the image's own; nothing is published.
        """
        ...

    def has_image(self, image: str) -> bool:
        """Tell whether the image is on this host."""
        ...

    def pull_image(self, image: str, report: Callable[[Mapping[str, Any]], object]) -> None:
        """Pull an image; return once it is there.

        `report` gets each message of the engine: https://docs.docker.com/engine/api/ (ImageCreate).
        What it raises ends the pull.
        """
        ...

    def stop(self, container: str, grace_s: float) -> None:
        """SIGTERM, SIGKILL after `grace_s`, then remove it; it is fine if it is gone."""
        ...

    def follow(self, container: str, lines: int, write: Callable[[bytes], object]) -> None:
        """Write the last `lines` of its output, then what follows, until it ends."""
        ...

    def close(self) -> None:
        """Give back the connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerHost:
    """A container engine as it describes itself.

    `source` says how it was found, `url` where it answers. `memory_mb` is what its containers may take
    together: on a Mac that of its virtual machine.
    """

    name: str
    version: str
    api: str
    source: str
    url: str
    memory_mb: int


class KeepAwake(Protocol):
    """Keeps the host from falling asleep by itself. Neither call raises; each may come any number of times."""

    async def hold(self) -> None:
        """Keep it awake from now on."""
        ...

    async def release(self) -> None:
        """Let it sleep again."""
        ...


class SleepNews(Protocol):
    """The system's own word that the host will sleep, given before it does."""

    async def listen(
        self, going: Callable[[float], Awaitable[None]], back: Callable[[], Awaitable[None]]
    ) -> str | None:
        """Listen until cancelled, or until nothing more is heard.

        `going` is awaited with the seconds that it may take, before the host sleeps; `back` once it is awake
        again. Return why nothing is announced to this agent; None if something was, and no longer is.
        """
        ...


class Presence(Protocol):
    """The agent's place with its router. Neither call raises; each may come any number of times."""

    async def leave(self) -> None:
        """Give it up until `rejoin`; it takes some 2 s at most."""
        ...

    def rejoin(self) -> None:
        """Take it again, if it was given up."""
        ...


class ContainerSurvey(Protocol):
    """What can be asked of a container engine without changing anything. Every call blocks.

    All of them raise `ContainerError`.
    """

    def host(self) -> ContainerHost:
        """Return how the engine describes itself."""
        ...

    def has_image(self, image: str) -> bool:
        """Tell whether an image is there, so that nothing has to be pulled."""
        ...

    def close(self) -> None:
        """Give back the connections."""
        ...
