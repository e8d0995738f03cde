"""The real vLLM, started as the chart starts it: arguments, variables, probes, and the release's own test."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from local_agent.process import free_port
from tests.chart.rendering import Object, containers, pod_specs, render
from tests.integration import tiny_qwen2, vllm_environment
from tests.integration.stack import machine_environment, missing, until

pytestmark = pytest.mark.integration
KEY = "of-the-secret"
_START_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A model server, and the objects that it was started from."""

    url: str
    engine: Object
    smoke: Object


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    interpreter = vllm_environment.interpreter()
    if interpreter is None:
        missing("vLLM: python -m tests.integration.vllm_environment")
    folder = tmp_path_factory.mktemp("chart-vllm")
    model = folder / "model"
    model.mkdir()
    for name, content in tiny_qwen2.files().items():
        (model / name).write_bytes(content)
    seen = Path.home() / ".cache" / "vllm" / "modelinfos"
    if seen.is_dir():  # of models' classes, for any start of this vLLM
        shutil.copytree(seen, folder / "cache" / "vllm" / "modelinfos")
    port = free_port()
    found = dict(pod_specs(render(_values(model, folder / "cache", port))))
    (engine,) = containers(found["llm-d-decode"])
    (smoke,) = containers(found["llm-d-smoke"])
    url = f"http://127.0.0.1:{port}"
    # the wheel for CPUs refuses `vllm serve` by name; it takes the model as an option
    command = [str(interpreter), "-m", "vllm.entrypoints.openai.api_server", "--model"]
    log = folder / "vllm.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *engine["args"]],
            env=machine_environment(**_variables(engine), HF_HUB_OFFLINE="1"),
            cwd=folder,
            stdout=output,
            stderr=output,
        )
    try:

        def is_up() -> bool:
            assert process.poll() is None, log.read_text()[-3000:]
            return _status(url + engine["startupProbe"]["httpGet"]["path"]) == 200

        until(is_up, _START_S, "vLLM is ready", every_s=0.5)
        yield Started(url=url, engine=engine, smoke=smoke)
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def _values(model: Path, cache: Path, port: int) -> dict[str, object]:
    return {
        "mode": "none",
        "engine": {"type": "vllm-cpu"},
        "model": {
            "name": str(model),
            "servedNames": ["tiny", "org/tiny"],
            "maxModelLen": "auto",
            "maxNumSeqs": 4,
            "extraArgs": ["--enforce-eager"],
        },
        "modelServer": {"port": port, "cpuKvCacheGiB": 1},
        "modelCache": {"mountPath": str(cache)},
        "secrets": {"apiKey": {"existingSecret": "llm-d-key"}},
    }


def _variables(container: Object) -> dict[str, str]:
    """Return a container's variables; what the cluster would fill in is what the secret holds."""
    return {one["name"]: one.get("value", KEY) for one in container["env"]}


def _status(url: str) -> int:
    try:
        return httpx.get(url, trust_env=False).status_code
    except httpx.TransportError:
        return 0


def test_probes_need_no_key_and_clients_do(server: Started) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert _status(server.url + server.engine[probe]["httpGet"]["path"]) == 200
    assert _status(f"{server.url}/metrics") == 200  # the picker asks there
    assert _status(f"{server.url}/v1/models") == 401


def test_it_serves_under_its_names_with_the_context_that_fits(server: Started) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    answer = httpx.get(f"{server.url}/v1/models", headers=headers, trust_env=False).json()
    assert [one["id"] for one in answer["data"]] == ["tiny", "org/tiny"]
    assert {one["max_model_len"] for one in answer["data"]} == {tiny_qwen2.CONTEXT}


def test_metrics_that_scaling_asks_for_are_there(server: Started) -> None:
    text = httpx.get(f"{server.url}/metrics", trust_env=False).text
    for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"):
        assert f"\nvllm:{name}{{" in text


async def test_helm_test_is_content_with_it(server: Started) -> None:
    variables = _variables(server.smoke) | {"BASE": server.url, "no_proxy": "*"}
    smoke = await asyncio.create_subprocess_exec(
        *server.smoke["command"],
        *server.smoke["args"],
        env=machine_environment(**variables),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(smoke.communicate(), 120)
    assert smoke.returncode == 0
    assert b'"chat.completion"' in said
