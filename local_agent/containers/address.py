"""Where the container engine of this host answers: what was set, else the usual sockets.

A program that launchd starts has no shell's environment, so the sockets are looked for too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_STANDARD = "/var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class Address:
    """A place where a container engine may answer; `source` names it without a path of the host."""

    url: str
    source: str


def candidates(env: Mapping[str, str], home: Path, *, root: Path = Path("/")) -> list[Address]:
    """Return where to ask, in order; what was set is the only one.

    Args:
        env: the environment.
        home: the user's home folder.
        root: the root of the file system.
    """
    chosen = _chosen(env, home)
    if chosen is not None:
        return [chosen]
    runtime = Path(env.get("XDG_RUNTIME_DIR") or "/nowhere")
    sockets = (
        (root / _STANDARD[1:], "the standard socket"),
        (home / ".docker/run/docker.sock", "Docker Desktop"),
        (home / ".docker/desktop/docker.sock", "Docker Desktop"),
        (home / ".colima/default/docker.sock", "Colima"),
        (home / ".config/colima/default/docker.sock", "Colima"),
        (home / ".orbstack/run/docker.sock", "OrbStack"),
        (runtime / "docker.sock", "Docker without root"),
        (runtime / "podman/podman.sock", "Podman"),
        (home / ".local/share/containers/podman/machine/podman.sock", "Podman"),
        (root / "run/podman/podman.sock", "Podman"),
    )
    return [Address(f"unix://{path}", source) for path, source in sockets if path.exists()]


def address_problem(env: Mapping[str, str], home: Path) -> str | None:
    """Say why the engine that was set can't carry workers of this host; None if it may."""
    chosen = _chosen(env, home)
    if chosen is None or chosen.url.startswith("unix://"):
        return None
    parts = urlsplit(chosen.url)
    if not chosen.url:
        return f"{chosen.source} does not exist or can't be read; choose another: docker context use NAME; then restart the agent"
    if parts.scheme in {"tcp", "http", "https"} and parts.hostname in _LOOPBACK:
        return None
    return (
        f"{chosen.source} names a container engine that is not on this machine, where workers have"
        " to run; use a unix socket, or unset it, and restart the agent"
    )


def _chosen(env: Mapping[str, str], home: Path) -> Address | None:
    if url := env.get("DOCKER_HOST"):
        return Address(url, "DOCKER_HOST")
    config = Path(env.get("DOCKER_CONFIG") or home / ".docker")
    name = env.get("DOCKER_CONTEXT") or _read(config / "config.json").get("currentContext")
    if not isinstance(name, str) or name in {"", "default"}:
        return None
    folder = hashlib.sha256(name.encode()).hexdigest()
    meta = _read(config / "contexts" / "meta" / folder / "meta.json")
    endpoints = meta.get("Endpoints")
    docker = endpoints.get("docker") if isinstance(endpoints, dict) else None
    host = docker.get("Host") if isinstance(docker, dict) else None
    return Address(host if isinstance(host, str) else "", f"the Docker context {name}")


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
