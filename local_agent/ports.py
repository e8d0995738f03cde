"""Every seam of the local agent, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from local_agent.domain import Deployment, EngineLoad, HostFacts


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start an engine: a program with its arguments, never a shell line.

    `cwd` keeps host paths out of the engine's own log: weights are given relative to it.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """A GET that answers 200 once the engine can serve."""

    path: str = "/health"
    timeout_s: float = 2.0


class Engine(Protocol):
    """Describes an inference program. Pure, no I/O: every method is a table test."""

    @property
    def needs_weights(self) -> bool:
        """Tell whether it can't run without weights on this host."""
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


class Process(Protocol):
    """A started engine, with everything it started itself."""

    @property
    def pid(self) -> int:
        """Return the process id of the leader, which is the id of its group too."""
        ...

    async def wait(self) -> int:
        """Return the exit code once it has ended; may be awaited by several tasks."""
        ...

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to the whole group, SIGKILL after `grace_s`; return when all of it is gone."""
        ...

    def log_tail(self, lines: int) -> list[str]:
        """Return the last lines that it wrote."""
        ...


class HttpProber(Protocol):
    """Asks an engine whether it serves."""

    async def ok(self, url: str, timeout_s: float) -> bool:
        """Tell whether a GET of `url` answers 200 within `timeout_s`; never raises."""
        ...


class ProcessLauncher(Protocol):
    """Starts processes and remembers them on disk, so that a later agent finds them."""

    async def launch(self, name: str, launch: Launch, *, config_hash: str, port: int) -> Process:
        """Start a process in a group of its own; its output goes to a bounded log file.

        Raises:
            OSError: the program can't be started.
        """
        ...

    async def reap_orphans(self) -> list[str]:
        """End what an earlier agent started and left; return the names of what was ended."""
        ...
