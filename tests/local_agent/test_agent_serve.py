"""How an agent starts and stops: in this process as far as it is refused, else as a real one."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import structlog
from structlog.testing import capture_logs

from local_agent.app import Agent, create_app, serve
from local_agent.config_file import load_config
from local_agent.control.identity import hold_identity
from local_agent.listening import USUAL_PORTS, listen
from local_agent.process import free_port
from local_agent.settings import AgentSettings, load_settings
from shared.http.serve import PortTaken, bind
from shared.kit.clock import monotonic
from shared.testing.serving import serving

ROOT = Path(__file__).parents[2]
SIMULATED = {"id": "sim", "engine": "simulated", "preload": True}


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """Undo what `serve` does to the logs of this process."""
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()


def settings(home: Path, **values: Any) -> AgentSettings:
    return load_settings(**{"iir_home": home, "router_url": "http://127.0.0.1:9", **values})


def write(home: Path, *models: dict[str, Any]) -> None:
    path = home / "agent" / "agent.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"known_models": False, "models": models}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.7", "somewhere.example"])
def test_a_network_without_a_credential_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(SystemExit) as refused:
        serve(settings(tmp_path, agent_host=host, agent_port=0))
    assert "refusing to listen" in str(refused.value)
    assert "iir agents add NAME --token-file FILE" in str(refused.value)


def test_a_port_that_was_asked_for_and_is_taken_is_named(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as refused:
            serve(settings(tmp_path, agent_port=port))
    expected = f"iir-agent: Port {port} on 127.0.0.1 is taken by another program. Set AGENT_PORT to another one."
    assert str(refused.value) == expected


def test_an_address_that_is_not_ours_is_explained(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "credential").write_text("sk-iir-abcdefgh-secret")
    with pytest.raises(SystemExit, match="can't start: Cannot assign"):
        serve(settings(tmp_path, agent_host="192.0.2.1", agent_port=0))


def test_a_bad_file_is_explained(tmp_path: Path) -> None:
    write(tmp_path, {"id": "x", "engine": "warp"})
    with pytest.raises(SystemExit, match=r"iir-agent: agent.yaml, line 1: .*no such engine"):
        serve(settings(tmp_path, agent_port=0))
    with pytest.raises(SystemExit, match=r"gone.yaml: can't be read"):
        serve(settings(tmp_path, agent_port=0, agent_config=tmp_path / "gone.yaml"))


def test_a_home_that_is_no_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(SystemExit, match="iir-agent: can't start: Not a directory"):
        serve(settings(tmp_path / "home", agent_port=0))


def test_a_second_agent_of_one_home_is_refused(tmp_path: Path) -> None:
    with hold_identity(tmp_path / "agent"), pytest.raises(SystemExit, match="runs already"):
        serve(settings(tmp_path, agent_port=0))


def test_without_a_port_the_first_free_one_of_the_usual_is_taken() -> None:
    assert USUAL_PORTS[:3] == (5000, 5055, 5056)
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        spare = free_port()
        with listen("127.0.0.1", None, (port, spare)) as found:
            assert found.getsockname()[1] == spare
        with pytest.raises(PortTaken):
            listen("127.0.0.1", None, (port,))
        with pytest.raises(PortTaken):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, "http://127.0.0.1:4711"),
        ({"agent_host": "localhost"}, "http://127.0.0.1:4711"),
        ({"agent_host": "0.0.0.0"}, "http://127.0.0.1:4711"),
        ({"agent_host": "::1"}, "http://[::1]:4711"),
        ({"agent_host": "192.168.7.7"}, "http://192.168.7.7:4711"),
        ({"agent_url": "http://10.0.0.2:80/"}, "http://10.0.0.2:80"),
    ],
)
def test_the_agent_says_where_it_is(tmp_path: Path, values: dict[str, Any], url: str) -> None:
    agent = Agent(settings(tmp_path, **values), load_config(None, {}), 4711)
    assert agent._subject.registration().base_url == url


def test_an_application_opens_nothing_before_its_start(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    assert callable(create_app(settings(tmp_path)))
    assert psutil.Process().num_fds() == before


@pytest.mark.parametrize(("yaml", "env", "drain_s"), [(None, None, 60), (7, None, 7), (7, 3, 3)])
def test_the_drain_s_limit_is_the_environment_s_before_the_file_s(
    tmp_path: Path, yaml: float | None, env: float | None, drain_s: float
) -> None:
    write(tmp_path)
    path = tmp_path / "agent" / "agent.yaml"
    path.write_text("{}" if yaml is None else json.dumps({"drain_s": yaml}))
    values = {} if env is None else {"agent_drain_s": env}
    assert Agent(settings(tmp_path, **values), load_config(path, {}), 1).drain_s == drain_s


# -- as a process ------------------------------------------------------------------------------


def environment(home: Path, **more: str) -> dict[str, str]:
    return {
        "PATH": os.defpath,
        "PYTHONPATH": str(ROOT),
        "IIR_HOME": str(home),
        "ROUTER_URL": "http://127.0.0.1:9",
        "AGENT_PORT": str(free_port()),
        "AGENT_DRAIN_S": "1",
        **more,
    }


@contextmanager
def process(
    arguments: list[str], env: dict[str, str], cwd: Path
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run an agent and yield it with its URL once its model is loaded; nothing of it is left."""
    found = subprocess.Popen(
        [sys.executable, *arguments], env=env, cwd=cwd, stderr=subprocess.PIPE, text=True
    )
    url = f"http://127.0.0.1:{env['AGENT_PORT']}"
    try:
        deadline = monotonic() + 20
        while loaded(url) != {"sim": "loaded"}:
            assert found.poll() is None, found.communicate()[1]
            assert monotonic() < deadline
            time.sleep(0.05)
        yield found, url
    finally:
        if found.poll() is None:
            for child in psutil.Process(found.pid).children(recursive=True):
                child.kill()
            found.kill()
        found.communicate()


def loaded(url: str) -> dict[str, str]:
    try:
        data = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"]
    except httpx.HTTPError:
        return {}
    return {model["id"]: model["status"]["value"] for model in data}


def family(found: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(found.pid).children(recursive=True)


@pytest.mark.slow
def test_an_agent_serves_tells_its_port_and_ends_without_a_trace(tmp_path: Path) -> None:
    write(tmp_path, SIMULATED)
    env = environment(tmp_path)
    with process(["-m", "local_agent", "serve"], env, tmp_path) as (agent, url):
        run_file = tmp_path / "run" / "agent.json"
        assert json.loads(run_file.read_text()) == {
            "port": int(env["AGENT_PORT"]),
            "host": "127.0.0.1",
        }
        assert httpx.post(f"{url}/infer", json={"prompt": "a", "model": "sim"}).status_code == 200
        children = family(agent)
        assert len(children) == 1
        elsewhere = {name: value for name, value in env.items() if name != "AGENT_PORT"}
        found = subprocess.run(
            [sys.executable, "-m", "local_agent", "ps", "--json"],
            env=elsewhere, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
        assert json.loads(found.stdout)[0]["pid"] == children[0].pid
        again = subprocess.run(
            [sys.executable, "-m", "local_agent", "serve", "--port", "0"],
            env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
        assert again.returncode == 1
        assert "an agent with this IIR_HOME runs already" in again.stderr
        started = monotonic()
        agent.send_signal(signal.SIGTERM)
        output = agent.communicate(timeout=10)[1]
        assert agent.returncode == 0
        assert monotonic() - started < 5
        assert not any(child.is_running() for child in children)
        assert not run_file.exists()
        assert str(tmp_path) not in output
        assert "Traceback" not in output
        lines = [json.loads(line) for line in output.splitlines()]
        assert {line["event"] for line in lines} >= {"worker", "lease", "request"}


TELLS_MODULES = """
import atexit, sys
from local_agent.__main__ import main

atexit.register(lambda: print("loaded:", *sys.modules, file=sys.stderr))
main()
"""


@pytest.mark.slow
def test_an_agent_that_only_serves_loads_no_framework(tmp_path: Path) -> None:
    write(tmp_path, SIMULATED)
    env = environment(tmp_path)
    with process(["-c", TELLS_MODULES, "serve"], env, tmp_path) as (agent, url):
        for path in ("/health", "/readyz", "/metrics", "/v1/models", "/favicon.ico"):
            httpx.get(url + path, trust_env=False)
        assert httpx.post(f"{url}/infer", json={"prompt": "a", "model": "sim"}).status_code == 200
        agent.send_signal(signal.SIGTERM)
        output = agent.communicate(timeout=10)[1]
    (line,) = (line for line in output.splitlines() if line.startswith("loaded:"))
    loaded = set(line.split())
    assert {"msgspec", "pydantic"} <= loaded, "the line tells what is loaded"
    assert loaded & {"fastapi", "greenlet", "sqlalchemy", "starlette.requests"} == set()


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    write(tmp_path, {**SIMULATED, "options": {"itl_ms": 50, "tokens": 10_000}})
    env = environment(tmp_path, AGENT_DRAIN_S="60")
    with process(["-m", "local_agent", "serve"], env, tmp_path) as (agent, url):
        children = family(agent)
        body = {"prompt": "a", "model": "sim", "stream": True}
        with httpx.stream("POST", f"{url}/infer", json=body) as response:
            pieces = response.iter_bytes()
            assert next(pieces)
            agent.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert agent.poll() is None  # the stream may finish
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/health", trust_env=False)
            agent.send_signal(signal.SIGTERM)
            output = agent.communicate(timeout=10)[1]
        assert agent.returncode == 0
        assert "Traceback" not in output
        assert not any(child.is_running() for child in children)


BROKEN = """
from local_agent.app import serve
from local_agent.process import LocalProcessLauncher
from local_agent.settings import load_settings

class Broken(Exception):
    pass

async def broken(self, keep):
    raise Broken("/some/path")

LocalProcessLauncher.reap_orphans = broken
serve(load_settings())
"""


@pytest.mark.slow
def test_an_agent_that_can_t_carry_workers_ends(tmp_path: Path) -> None:
    write(tmp_path, SIMULATED)
    ended = subprocess.run(
        [sys.executable, "-c", BROKEN],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert ended.returncode == 0
    assert '"event":"supervisor_failed"' in ended.stderr
    assert '"kind":"Broken"' in ended.stderr
    assert "/some/path" not in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_defect_of_the_lease_leaves_local_clients_their_models(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "credential").write_text("sk-iir-abcdefgh-secret")
    odd = settings(tmp_path).model_copy(update={"agent_name": "n" * 200})  # no registration fits
    config = load_config(None, {})
    with capture_logs() as logs:
        async with serving(Agent(odd, config, 1).asgi()) as url, httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/v1/models")).status_code == 200
            assert (await client.get(f"{url}/readyz")).json()["lease"] == "starting"
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["lease_failed"]


@pytest.mark.slow
def test_uvicorn_serves_the_agent_from_its_folder(tmp_path: Path) -> None:
    write(tmp_path, SIMULATED)
    env = environment(tmp_path)
    arguments = ["-m", "uvicorn", "main:app", "--port", env["AGENT_PORT"]]
    with process(arguments, env, ROOT / "local_agent") as (agent, url):
        assert httpx.get(f"{url}/readyz", trust_env=False).json()["status"] == "ready"
        children = family(agent)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=10) in {0, -signal.SIGTERM}
        assert not any(child.is_running() for child in children)


@pytest.mark.slow
def test_wrong_settings_are_explained_in_one_line(tmp_path: Path) -> None:
    for name, value in [
        ("AGENT_PORT", "99999"),
        ("ROUTER_URL", "127.0.0.1:8000"),
        ("AGENT_NAME", "n" * 129),
    ]:
        ended = subprocess.run(
            [sys.executable, "-m", "local_agent", "serve"],
            env={**environment(tmp_path), name: value},
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
        assert ended.returncode == 2
        assert re.fullmatch(rf"iir-agent: {name}: .+\n", ended.stderr), ended.stderr
