"""Routers of this machine that run now, and whether they have the cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values

from router.domain import LLMD
from scripts.devstack.plan import record_path, url_host
from scripts.devstack.probes import get
from scripts.devstack.record import Record
from scripts.devstack.text import Waiting
from scripts.k3s.errors import ToolMissing
from scripts.k3s.tools import Tools
from shared.kit.run_file import read_run_file

_PAUSE_S = 0.1
_USUAL_PORT = "8000"
AWAY = "unreachable"
_UNANSWERED = {None, "unknown", AWAY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Routers:
    """Where routers of this checkout are looked for."""

    home: Path
    env_file: Path
    environment: Mapping[str, str]
    limit_s: float
    """How long one may take to take another address; it looks a few times a second."""

    def running(self) -> list[str]:
        """Return the URLs of those that answer: that of `make up`, that of `iir serve`, that of the settings."""
        found = []
        record = Record.read(record_path(self.home))
        if record is not None and record.is_running():
            found.append(record.router_url)
        served = read_run_file(self.home / "run" / "router.json")
        if served is not None:
            found.append(_url(served.host or "", served.port))
        port = self._setting("ROUTER_PORT") or _USUAL_PORT
        if port.isdecimal() and 0 < int(port) < 65536:
            found.append(_url(self._setting("ROUTER_HOST"), int(port)))
        return [url for url in dict.fromkeys(found) if _readiness(url) is not None]

    def wait(self, url: str, is_enough: Callable[[str | None], bool], what: str) -> str | None:
        """Return how its cluster stands once that is enough, or at the end of the limit."""
        until = time.monotonic() + self.limit_s
        waiting = Waiting(what)
        try:
            while True:
                state = state_of(url)
                if is_enough(state) or time.monotonic() > until:
                    return state
                waiting.tick()
                time.sleep(_PAUSE_S)
        finally:
            waiting.clear()

    def _setting(self, name: str) -> str:
        written = dotenv_values(self.env_file) if self.env_file.is_file() else {}
        return (self.environment.get(name) or written.get(name) or "").strip()


def has_cluster(state: str | None) -> bool:
    """Tell whether a router has a cluster `llmd` that answered it.

    A worker that has not taken our address yet says of the old one that it is away.
    """
    return state not in _UNANSWERED


def state_of(url: str, cluster: str = LLMD) -> str | None:
    """Return how one of a router's clusters stands; None if it has none of that name."""
    clusters = (_readiness(url) or {}).get("clusters")
    state = clusters.get(cluster) if isinstance(clusters, dict) else None
    return None if state is None else str(state)


def container_of(tools: Tools, url: str) -> str | None:
    """Return the name of the container that publishes a router's port, if one does."""
    words = ["docker", "ps", "--filter", f"publish={urlsplit(url).port}", "--format", "{{.Names}}"]
    try:
        names = tools.read(words).output.split()
    except ToolMissing:
        return None
    return names[0] if names else None


def _url(host: str, port: int) -> str:
    return f"http://{url_host(host)}:{port}"


def _readiness(url: str) -> dict[str, object] | None:
    """Return what a router says of itself; None if none answers there."""
    _, said = asyncio.run(get(f"{url}/readyz"))
    return said if isinstance(said, dict) and "registry" in said else None
