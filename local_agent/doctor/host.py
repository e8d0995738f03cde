"""The host itself: disk, memory and the port."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from local_agent.doctor.finding import Finding
from local_agent.doctor.models import Plan
from local_agent.listening import USUAL_PORTS
from local_agent.local_http import local_client
from local_agent.weights.files import FreeBytes
from local_agent.weights.progress import gigabytes
from shared.http.origin import is_loopback
from shared.http.serve import PortTaken, bind

_RESERVE = 1.05
_LEAST_FREE = 500_000_000
_ASK_S = 1.0
_AIRPLAY_FIX = (
    "use 127.0.0.1 and the agent's own port, never localhost; or switch AirPlay Receiver off "
    "(System Settings, General, AirDrop & Handoff)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNow:
    """The host's memory at this moment, in MiB."""

    total_mb: int
    available_mb: int
    swap_mb: int
    swap_used_mb: int


def memory_now() -> MemoryNow:
    """Return what the operating system tells."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return MemoryNow(
        total_mb=memory.total // 2**20,
        available_mb=memory.available // 2**20,
        swap_mb=swap.total // 2**20,
        swap_used_mb=swap.used // 2**20,
    )


def examine_disk(home: Path, plans: Sequence[Plan], free_bytes: FreeBytes) -> Finding:
    """Return whether what is not pulled yet would fit, and whether there is room at all."""
    folder = home
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        free = free_bytes(folder)
    except OSError as error:
        return Finding("disk", "problem", f"IIR_HOME can't be read: {error.strerror}")
    missing = sum(plan.missing_bytes for plan in plans)
    text = f"{gigabytes(free)} free for IIR_HOME"
    more = f"; models that are not pulled need {gigabytes(missing)}" if missing else ""
    fix = "free some, or set IIR_HOME to a folder on a larger disk"
    if free < _LEAST_FREE:
        return Finding("disk", "problem", text + more, fix)
    if missing * _RESERVE > free:
        return Finding("disk", "note", text + more, fix)
    return Finding("disk", "ok", text + more)


def examine_memory(budget: int, plans: Sequence[Plan], now: MemoryNow) -> Iterator[Finding]:
    """Yield how the budget stands to what the host has, and to what is meant to be in memory."""
    text = f"budget {budget} of {now.total_mb} MiB, {now.available_mb} available now"
    fix = "set `memory_budget` in the agent's YAML file"
    if budget > now.total_mb:
        yield Finding("memory", "problem", f"{text}: more than the host has", fix)
    else:
        yield Finding("memory", "ok", text)
    together = sum(plan.needs_mb for plan in plans if plan.is_relied_on and plan.reason is None)
    if together > budget:
        text = (
            f"the models with `preload` or `pin` take about {together} MiB together, more than that"
        )
        yield Finding("memory", "note", text, "take `preload` or `pin` from some of them")
    if now.swap_used_mb > now.total_mb // 4:
        text = f"{now.swap_used_mb} of {now.swap_mb} MiB of swap are in use: the host is short of memory"
        yield Finding("memory", "note", text, f"end other programs, or {fix}")


def examine_port(
    host: str, port: int | None, running_on: str | None, usual: Sequence[int] = USUAL_PORTS
) -> Iterator[Finding]:
    """Yield whether the agent can listen.

    Args:
        host: the setting AGENT_HOST.
        port: the setting AGENT_PORT; None: the first free one of the usual.
        running_on: the base URL of the agent that runs here, if one does.
        usual: the ports that are tried where none is set.
    """
    if running_on is not None:
        yield Finding("port", "ok", f"the agent has {running_on}")
    elif port is not None:
        yield _asked_for(host, port)
    else:
        yield _usual(host, usual)
    first = usual[0] if port is None else port
    if first and any(_is_airplay(name, first) for name in ("127.0.0.1", "[::1]")):
        yield Finding("port", "note", f"AirPlay answers on port {first} of localhost", _AIRPLAY_FIX)


def examine_address(host: str, url: str | None) -> Iterator[Finding]:
    """Yield whether a router on another machine could find an agent that listens to a network."""
    is_any = host in {"0.0.0.0", "::"}
    if is_any and url is None:
        text = f"AGENT_HOST is {host} and AGENT_URL is not set: a router elsewhere can't find the agent"
        yield Finding("address", "problem", text, "set AGENT_URL=http://ADDRESS:PORT")
    name = (httpx.URL(url).host if url else "").strip("[]")
    if name == "localhost":
        text = "AGENT_URL names localhost, where AirPlay may answer on a Mac"
        yield Finding("address", "note", text, "set AGENT_URL=http://127.0.0.1:PORT")
    elif not is_loopback(host) and name and is_loopback(name):
        text = "AGENT_URL is an address of this machine only"
        yield Finding("address", "note", text, "set AGENT_URL=http://ADDRESS:PORT")


def _asked_for(host: str, port: int) -> Finding:
    problem = _taken(host, port)
    if problem is None:
        return Finding("port", "ok", f"port {port} on {host} is free")
    return Finding("port", "problem", problem, "set AGENT_PORT to another one, or unset it")


def _usual(host: str, usual: Sequence[int]) -> Finding:
    problems = []
    for port in usual:
        problem = _taken(host, port)
        if problem is None:
            break
        problems.append(problem)
    else:
        return Finding("port", "problem", problems[0], "set AGENT_PORT to a port that is free")
    if not problems:
        return Finding("port", "ok", f"port {port} on {host} is free")
    return Finding("port", "note", f"{problems[0]}; the agent will take {port}")


def _taken(host: str, port: int) -> str | None:
    """Say why nobody can listen there; None if one can."""
    try:
        bind(host, port).close()
    except PortTaken:
        whose = "AirPlay" if _is_airplay("127.0.0.1", port) else "another program"
        return f"port {port} on {host} is taken by {whose}"
    except OSError as error:
        return f"nobody can listen on {host}: {error.strerror or type(error).__name__}"
    return None


def _is_airplay(name: str, port: int) -> bool:
    """Tell whether the Mac's AirPlay receiver answers there; it calls itself AirTunes."""
    try:
        with (
            local_client(_ASK_S) as client,
            client.stream("GET", f"http://{name}:{port}/") as answer,
        ):
            return "airtunes" in answer.headers.get("server", "").lower()
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
