"""Registries for the router under measurement."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert

from benchmarks.processes import BenchError
from router.store.tables import deployments, models, providers
from router.store.versions import Version, bump
from router.store.writer import RegistryWriter

MODEL = "bench-model"


def make_registry(folder: Path, env: Mapping[str, str], upstreams: Sequence[int]) -> str:
    """Make a registry with one model on all upstreams and one key, by the commands users have.

    Returns:
        The key.
    """
    named = {f"mock-{number}": port for number, port in enumerate(upstreams, 1)}
    document = {
        "providers": [
            {"name": name, "base_url": f"http://127.0.0.1:{port}/v1", "zone": "local"}
            for name, port in named.items()
        ],
        "models": [{"id": MODEL, "deployments": [{"provider": name} for name in named]}],
    }
    seed = folder / "seed.yaml"
    seed.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML as well
    _iir(folder, env, "seed", str(seed))
    return _iir(folder, env, "keys", "create", "--name", "bench", "--quiet").strip()


def fill_registry(folder: Path, upstream: int, *, model_count: int, endpoint_count: int) -> None:
    """Add models on endpoints that nobody asks for, in one go: commands would take a minute.

    Their URLs lead to the mock upstream, so that whoever probes them finds them well.
    """

    def fill(connection: Connection) -> None:
        endpoints = [_provider(f"filler-{n}", upstream) for n in range(endpoint_count)]
        names = [f"filler-model-{n}" for n in range(model_count)]
        connection.execute(insert(providers), endpoints)
        connection.execute(insert(models), [{"id": name, "created_at": 0} for name in names])
        connection.execute(
            insert(deployments),
            [
                {
                    "model": name,
                    "provider": f"filler-{number % endpoint_count}",
                    "upstream_name": name,
                    "priority": 100,
                    "weight": 1.0,
                    "capabilities": [],
                }
                for number, name in enumerate(names)
            ],
        )
        bump(connection, Version.CATALOG)

    writer = RegistryWriter(f"sqlite:///{folder / 'models.db'}")
    try:
        writer.run_sync(fill)
    finally:
        writer.close()


def _provider(name: str, upstream: int) -> dict[str, Any]:
    return {
        "name": name,
        "dialect": "openai",
        "base_url": f"http://127.0.0.1:{upstream}/{name}/v1",
        "zone": "local",
        "key_env": None,
        "created_at": 0,
    }


def _iir(folder: Path, env: Mapping[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "router", *arguments]
    done = subprocess.run(
        command, env=dict(env), cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise BenchError(f"`iir {' '.join(arguments[:2])}` failed: {done.stderr[-1000:]}")
    return done.stdout
