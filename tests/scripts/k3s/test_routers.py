"""What `make k3s-up` and `k3s-down` do about routers that run, and say of them.

These routers are stand-ins that tell their clusters by `/readyz`. The real one: tests/integration/test_k3s_router.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from dotenv import dotenv_values

from scripts.devstack.plan import record_path
from scripts.devstack.record import Identity, Record
from tests.scripts.k3s.stage import Stage, said
from tests.threaded import answering

Clusters = dict[str, str]


class Following:
    """Has the cluster that `.env` names, as the real one does; `seen` are the addresses that it had."""

    def __init__(self, env: Path) -> None:
        self.env = env
        self.seen: list[str | None] = []

    def __call__(self) -> Clusters:
        address = dotenv_values(self.env).get("LLMD_ENDPOINT")
        if self.seen[-1:] != [address]:
            self.seen.append(address)
        return {"llmd": "ready"} if address else {}


@contextmanager
def router(tell: Callable[[], Clusters]) -> Iterator[str]:
    """Run a router that tells these clusters; yields its URL."""

    def answer(asked: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        found = tell() if asked.path == "/readyz" else {}
        clusters = {"clusters": found} if found else {}
        return 200, json.dumps({"status": "ready", "registry": "ok", **clusters}).encode()

    with answering(answer) as port:
        yield f"http://127.0.0.1:{port}"


def serves(stage: Stage, url: str) -> None:
    """Write what `iir serve` writes while it runs."""
    path = stage.home / "run" / "router.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"port": int(url.rpartition(":")[2]), "host": "127.0.0.1"}))


def env(stage: Stage) -> Path:
    return stage.root / ".env"


def test_a_router_that_runs_has_the_cluster_at_the_end_and_again(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = f"http://127.0.0.1:{stage.port}"
    follows = Following(env(stage))
    with router(follows) as url:
        serves(stage, url)
        assert stage.up() == 0
        out, _ = said(capsys)
        assert f"The router at {url} has the cluster now: llmd is ready" in out
        assert out.splitlines()[-1] == f"LLMD_ENDPOINT={ours}"
        before = env(stage).read_bytes()
        assert stage.run("up", "--yes") == 0
        assert f"The router at {url} has the cluster now: llmd is ready" in said(capsys)[0]
        assert env(stage).read_bytes() == before
        assert stage.run("down", "--yes") == 0
        assert f"The router at {url} has let it go" in said(capsys)[0]
    assert follows.seen == [None, ours, None]


def test_an_old_address_goes_before_ours_comes(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else nobody could tell which of the two a router has that says it is ready."""
    ours, old = f"http://127.0.0.1:{stage.port}", "http://127.0.0.1:9"
    env(stage).write_text(f"LLMD_ENDPOINT={old}\n")
    follows = Following(env(stage))
    with router(follows) as url:
        serves(stage, url)
        assert stage.up() == 0
        assert "has the cluster now: llmd is ready" in said(capsys)[0]
    assert follows.seen == [old, None, ours]


def test_what_a_worker_still_says_of_the_old_address_is_not_told_of_ours(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """A router's workers do not take an address at the same moment, and any of them may answer."""
    env(stage).write_text("LLMD_ENDPOINT=http://127.0.0.1:9\n")
    said_so_far: list[str] = []

    def tell() -> Clusters:
        address = dotenv_values(env(stage)).get("LLMD_ENDPOINT")
        if address is None:
            return {}
        is_late = address.endswith(f":{stage.port}") and len(said_so_far) < 3
        said_so_far.extend(["late"] if is_late else [])
        return {"llmd": "unreachable" if is_late or address.endswith(":9") else "ready"}

    with router(tell) as url:
        serves(stage, url)
        assert stage.up() == 0
        assert f"The router at {url} has the cluster now: llmd is ready" in said(capsys)[0]


def test_a_router_that_does_not_reach_ours_is_said_so(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.router_s = 0.5
    with router(lambda: {"llmd": "unreachable"} if "LLMD" in _text(env(stage)) else {}) as url:
        serves(stage, url)
        assert stage.up() == 0
        assert "has the cluster now: llmd is unreachable" in said(capsys)[0]


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def test_every_router_is_told_of_once(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    follows = Following(env(stage))
    with router(follows) as of_make_up, router(follows) as of_settings:
        path = record_path(stage.home)
        path.parent.mkdir(parents=True)
        Record(supervisor=Identity.of(), router_url=of_make_up, has_model=True).write(path)
        serves(stage, of_make_up)
        stage.env["ROUTER_PORT"] = of_settings.rpartition(":")[2]
        assert stage.up() == 0
        told = [line for line in said(capsys)[0].splitlines() if "has the cluster now" in line]
        assert [line.split()[3] for line in told] == [of_make_up, of_settings]


def test_a_router_of_another_folder_is_told_how_it_gets_it(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.router_s = 0.0
    with router(dict) as url:
        serves(stage, url)
        assert stage.up() == 0, "the cluster is up"
        out, _ = said(capsys)
        assert f"The router at {url} did not take it" in out
        assert f"Start it again with LLMD_ENDPOINT=http://127.0.0.1:{stage.port}" in out


@pytest.mark.parametrize("before", [None, "http://127.0.0.1:9"])
def test_a_router_that_keeps_another_address_is_not_said_to_have_ours(
    stage: Stage, capsys: pytest.CaptureFixture[str], before: str | None
) -> None:
    stage.router_s = 0.0
    if before:
        env(stage).write_text(f"LLMD_ENDPOINT={before}\n")
    with router(lambda: {"llmd": "ready"}) as url:
        serves(stage, url)
        assert stage.up() == 0
        out, _ = said(capsys)
        assert f"The router at {url} had llmd already" in out
        assert "in its environment, which beats .env" in out
        assert "has the cluster now" not in out
        assert stage.run("down", "--yes") == 0
        assert f"The router at {url} still has llmd" in said(capsys)[0]


def test_without_consent_a_router_is_left_as_it_is(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    follows = Following(env(stage))
    with router(follows) as url:
        serves(stage, url)
        assert stage.run("up", "--port", str(stage.port)) == 0
        out, _ = said(capsys)
        assert "A router takes it at once, or when it starts, after: echo 'LLMD_ENDPOINT=" in out
        assert "has the cluster now" not in out
    assert follows.seen == []


def test_what_the_run_file_of_a_killed_router_names_is_not_taken_for_one(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    serves(stage, "http://127.0.0.1:9")
    assert stage.up() == 0
    assert "No router runs" in said(capsys)[0]


# -- in a container, whose loopback is its own ------------------------------------------------------


def test_a_router_in_a_container_gets_there_by_dockers_network(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    clusters: Clusters = {}
    with router(lambda: clusters) as url:
        stage.env["ROUTER_PORT"] = port = url.rpartition(":")[2]
        stage.says("docker", f"ps --filter publish={port} *", "iir-router-1\n")
        assert stage.up() == 0
        connect = "docker network connect k3d-iir iir-router-1"
        add = (
            "docker exec iir-router-1 iir providers add k3d-iir --dialect llmd --zone cluster "
            "--base-url http://k3d-iir-server-0:30800"
        )
        assert f"  {connect} && {add}\n" in said(capsys)[0]
        clusters["k3d-iir"] = "unreachable"  # the container was made anew
        assert stage.run("up", "--yes") == 0
        assert f"  {connect}\n" in said(capsys)[0]
        clusters["k3d-iir"] = "ready"
        assert stage.run("up", "--yes") == 0
        out, _ = said(capsys)
        assert f"The router at {url} has the cluster: k3d-iir is ready" in out
        assert connect not in out
        assert stage.run("down", "--yes") == 0
        assert "docker exec iir-router-1 iir providers remove k3d-iir" in said(capsys)[0]


def test_a_router_in_a_container_reads_env_when_it_is_made(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.with_gpu()
    stage.serve()
    with router(dict) as url:
        stage.env["ROUTER_PORT"] = port = url.rpartition(":")[2]
        stage.says("docker", f"ps --filter publish={port} *", "iir-router-1\n")
        assert stage.run("up", "--yes") == 0
        assert "make docker-dev makes it anew" in said(capsys)[0]
