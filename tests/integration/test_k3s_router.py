"""`make k3s-up` beside a router that runs, both as processes: a chat gets through at once, and no more after `k3s-down`.

The programs that make a cluster are stand-ins; behind the address which they end with answers a simulated vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from dotenv import set_key

from local_agent.process import free_port
from router.store.catalog import list_providers
from router.store.reader import RegistryReader, load_catalog
from scripts.k3s import forward
from tests.integration.stack import ROOT, Service, until
from tests.scripts.k3s.stage import Stage, said

pytestmark = pytest.mark.slow

_WORKERS = 2
# In place of the stage's own server, whose process it becomes, so that the stand-ins end it.
_SIMULATED = """
import os, sys
arguments = ["-m", "shared.testing.simulated_engine", "--port", sys.argv[1], "--model", "org/tiny"]
os.execv(sys.executable, [sys.executable, *arguments])
"""


class Scene:
    """A router, and a machine on which `make k3s-up` runs."""

    def __init__(self, folder: Path) -> None:
        self.stage = Stage(folder)
        (self.stage.folder / "server.py").write_text(_SIMULATED)
        self.env_file = self.stage.root / ".env"
        self.registry = f"sqlite:///{self.stage.home / 'models.db'}"
        url = f"http://127.0.0.1:{self.stage.env['ROUTER_PORT']}"
        env = {
            "PATH": self.stage.env["PATH"],
            "PYTHONPATH": str(ROOT),
            "IIR_HOME": str(self.stage.home),
            "ROUTER_PORT": self.stage.env["ROUTER_PORT"],
            "WEB_CONCURRENCY": str(_WORKERS),
            "ROUTER_DRAIN_S": "2",
        }
        # in the checkout's folder, whose .env is the file of settings
        self.router = Service("router", url, env, self.stage.root)

    def ask(self) -> httpx.Response:
        """Ask the cluster's model by a connection of its own, so that any worker may get it."""
        body = {"model": "org/tiny", "messages": [{"role": "user", "content": "hello"}]}
        return httpx.post(
            f"{self.router.url}/v1/chat/completions", json=body, trust_env=False, timeout=30
        )

    def becomes(self, status: int) -> None:
        """Wait until every worker answers so; the command waits for one of them."""
        until(
            lambda: {self.ask().status_code for _ in range(4 * _WORKERS)} == {status},
            30,
            f"all workers answer {status}",
        )

    def stored(self) -> tuple[int, list[str]]:
        """Return the catalog's version, and the clusters that it names."""
        reader = RegistryReader(self.registry)
        try:
            version = reader.run(load_catalog).version
            rows = reader.run(list_providers)
        finally:
            reader.close()
        return version, [row.name for row in rows if row.dialect == "llmd"]

    def end(self) -> None:
        """End whatever lives."""
        forward.end(self.stage.home / "k3s")
        self.stage.end()
        if self.router.process is not None and self.router.process.poll() is None:
            self.router.terminate()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    try:
        made.router.start()
        yield made
    finally:
        made.end()


def content(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-iir-endpoint"] == "llmd"
    assert answer.headers["x-iir-zone"] == "cluster"
    return answer.json()["choices"][0]["message"]["content"]


def test_a_router_that_runs_serves_the_cluster_from_k3s_up_to_k3s_down(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, url = scene.stage, scene.router.url
    assert scene.ask().status_code == 404
    assert stage.up("--profile", "sim") == 0
    out, _ = said(capsys)
    assert f"The router at {url} has the cluster now: llmd is ready" in out
    scene.becomes(200)
    assert content(scene.ask())

    stored, written = scene.stored(), scene.env_file.read_bytes()
    assert stored[1] == ["llmd"]
    assert stage.run("up", "--yes") == 0
    assert (scene.stored(), scene.env_file.read_bytes()) == (stored, written), "nothing changes"

    scene.router.terminate()
    scene.router.start()
    assert content(scene.ask()), "at once: a router that starts asks first"
    assert scene.stored() == stored, "the same cluster, no second one"

    assert stage.run("down", "--yes") == 0
    assert f"The router at {url} has let it go" in said(capsys)[0]
    scene.becomes(503)
    assert scene.ask().json()["error"]["code"] == "provider_not_configured"
    assert stage.run("up", "--yes") == 0
    scene.becomes(200)


def test_another_address_is_taken_at_once(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    stage = scene.stage
    set_key(scene.env_file, "LLMD_ENDPOINT", "http://127.0.0.1:9", quote_mode="never")
    scene.router.terminate()
    scene.router.start()
    assert stage.up("--profile", "sim") == 0
    assert "has the cluster now: llmd is ready" in said(capsys)[0]
    scene.becomes(200)
    assert stage.run("down", "--yes", "--purge") == 0
    scene.becomes(503)
    stage.port = free_port()
    stage.env["SERVED_PORT"] = str(stage.port)
    assert stage.up("--profile", "sim") == 0
    scene.becomes(200)
    readiness = httpx.get(f"{scene.router.url}/readyz", trust_env=False).json()
    assert readiness["clusters"] == {"llmd": "ready"}, json.dumps(readiness)
