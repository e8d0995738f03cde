"""`iir-agent pull` and `rm` with an agent that runs: the agent pulls, the command shows."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from local_agent.domain import WorkerState
from local_agent.pulls.jobs import JobState
from tests.local_agent.harness import CHAT, MESSAGES, ROOT, Done, cli, command, until
from tests.local_agent.repo_hub import FakeHub

if TYPE_CHECKING:
    from tests.local_agent.harness import RunningAgent, StartAgent

GGUF = b"GGUF" + bytes(range(256)) * 8000
MODEL: dict[str, Any] = {
    "id": "org/m",
    "aliases": ["m"],
    "engine": "llama_cpp",
    "source": "hf:org/tiny:tiny.gguf",
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.files["tiny.gguf"] = GGUF
        yield hub


def job_state(agent: RunningAgent) -> JobState | None:
    view = agent.agent.pulls.view(MODEL["id"])
    return None if view is None else view.state


@pytest.mark.slow
async def test_the_agent_pulls_and_everybody_sees_it(start_agent: StartAgent, hub: FakeHub) -> None:
    hub.hold = 500_000
    async with start_agent(MODEL, hf_endpoint=hub.url) as agent:
        await agent.until("org/m", WorkerState.UNAVAILABLE)
        pulls: list[Done] = []

        async def pull(*more: str) -> None:
            pulls.append(await cli(agent, "pull", "m", *more))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull)
            tasks.start_soon(pull, "--json")  # joins
            await agent.until("org/m", WorkerState.PULLING)
            await until(lambda: ("/org/tiny/resolve/main/tiny.gguf", None) in hub.asked)
            await until(lambda: len(hub.asked) >= 2)
            listed = (await agent.client.get("/v1/models")).json()["data"]
            assert listed[0]["status"]["value"] == "downloading"
            with anyio.fail_after(10):
                while "% of" not in (await cli(agent, "ps")).output:
                    await anyio.sleep(0.01)
            ps = (await cli(agent, "ps")).output
            assert "pulling" in ps
            assert "downloading  hf:org/tiny:tiny.gguf  24 % of 2.0 MB" in ps
            asked = await agent.client.post(CHAT, json={"model": "m", "messages": MESSAGES})
            assert asked.status_code == 404
            assert asked.json()["error"]["code"] == "model_not_pulled"
            far = "model org/m is being pulled (downloading, 24 % of 2.0 MB"
            assert asked.json()["error"]["message"].startswith(far)
            assert asked.json()["error"]["progress"]["bytes_done"] == 500_000
            done = await cli(agent, "rm", "m")
            assert (done.code, "is being pulled" in done.output) == (1, True)
            hub.release()
        assert [done.code for done in pulls] == [0, 0]
        text = next(done.output for done in pulls if not done.output.startswith("{"))
        assert "pulled org/m: $IIR_HOME/models/org-m~" in text
        assert "the running agent has it now" in text
        lines = next(done.output for done in pulls if done.output.startswith("{")).splitlines()
        assert json.loads(lines[0])["phase"] in {"checking", "downloading"}
        assert json.loads(lines[-1])["is_checked"] is True
        downloads = [path for path, _ in hub.asked if path.endswith("tiny.gguf")]
        assert len(downloads) == 2  # one HEAD, one GET: the second command has joined

        steps = [(e.from_state.value, e.to_state.value) for e in agent.agent.supervisor.events()]
        assert ("unavailable", "pulling") in steps
        assert ("pulling", "cold") in steps or ("pulling", "unavailable") in steps
        assert (await agent.client.get("/internal/pulls")).json()[0]["state"] == "done"
        done = await cli(agent, "rm", "m")
        assert (done.code, done.output) == (0, "removed org/m\n")
        assert (await agent.client.get("/v1/models")).json()["data"][0]["is_pulled"] is False
        assert "no weights of org/m" in (await cli(agent, "rm", "m")).output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_stopped_command_stops_the_pull_and_the_next_goes_on(
    start_agent: StartAgent, hub: FakeHub, number: signal.Signals
) -> None:
    hub.hold = 500_000
    async with start_agent(MODEL, hf_endpoint=hub.url) as agent:
        line, env = command(agent, "pull", "m", "--json")
        child = await anyio.open_process(line, env=env, cwd=ROOT, stderr=subprocess.STDOUT)
        async with child:
            assert child.stdout is not None
            said = b""
            with anyio.fail_after(20):
                while b'"downloading"' not in said:
                    said += await child.stdout.receive()
            part = next((agent.home / "models").rglob("tiny.gguf.part"))
            await until(lambda: part.stat().st_size == 500_000)
            child.send_signal(number)
            with anyio.fail_after(20):
                said += b"".join([chunk async for chunk in child.stdout])
            assert await child.wait() == 130
        assert b"stopped; the same command goes on" in said
        assert job_state(agent) is JobState.CANCELLED
        await agent.until("org/m", WorkerState.UNAVAILABLE)
        hub.release()
        hub.asked.clear()
        assert (await cli(agent, "pull", "m")).code == 0
        assert [asked for _, asked in hub.asked if asked] == ["bytes=500000-"]


@pytest.mark.slow
async def test_a_pull_that_fails_is_told_everywhere(start_agent: StartAgent, hub: FakeHub) -> None:
    hub.is_gated = True
    async with start_agent(MODEL, hf_endpoint=hub.url, hf_token="hf_wrong_s3cret") as agent:
        done = await cli(agent, "pull", "m")
        assert done.code == 1
        assert "iir-agent: org/tiny is gated or private" in done.output
        assert "set HF_TOKEN" in done.output
        (worker,) = (await agent.client.get("/internal/workers")).json()
        assert worker["state"] == "unavailable"
        assert worker["reason"].startswith("its pull failed: org/tiny is gated or private")
        assert (await agent.client.get("/v1/models")).json()["data"][0]["status"] == {
            "value": "unloaded"
        }
        everything = done.output + json.dumps((await agent.client.get("/internal/pulls")).json())
        assert "s3cret" not in everything
        hub.is_gated = False
        assert (await cli(agent, "pull", "m")).code == 0


@pytest.mark.slow
async def test_an_agent_that_ends_tells_who_waits(start_agent: StartAgent, hub: FakeHub) -> None:
    hub.hold = 500_000
    async with start_agent(MODEL, hf_endpoint=hub.url) as agent:
        said: list[Done] = []

        async def pull() -> None:
            said.append(await cli(agent, "pull", "m"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull)
            await agent.until("org/m", WorkerState.PULLING)
            agent.agent.drain()
    assert said[0].code == 1
    assert "the agent was stopped; the same command goes on where it was" in said[0].output


async def test_what_can_not_be_pulled(start_agent: StartAgent) -> None:
    simulated = {"id": "sim", "engine": "simulated"}
    off = {"id": "off", "engine": "vllm_docker", "options": {"image": "a/b:1", "repo": "org/tiny"}}
    async with start_agent(simulated, off) as agent:
        for path, status, words in (
            ("nobody/pull", 404, "does not know the model"),
            ("sim/pull", 202, "queued"),
            ("off/pull", 202, "queued"),
        ):
            answer = await agent.client.post(f"/internal/models/{path}", json={})
            assert answer.status_code == status
            assert words in answer.text
        foreign = {"origin": "https://evil.example"}
        refused = await agent.client.post("/internal/models/sim/pull", json={}, headers=foreign)
        assert refused.status_code == 403
        refused = await agent.client.delete("/internal/models/sim/weights", headers=foreign)
        assert refused.status_code == 403
        pulls = agent.agent.pulls
        await until(lambda: all(view.is_over for view in pulls.views()))
        errors = {str(view.model): view.error for view in pulls.views()}
        assert errors["sim"] == "sim needs no weights (engine simulated)"
        assert "the image a/b:1 is not allowed" in (errors["off"] or "")
        assert (await agent.client.get("/internal/models/sim/pull")).text.count("data:") == 1
        assert (await agent.client.delete("/internal/models/sim/pull")).json()["state"] == "failed"


@pytest.mark.slow
async def test_weights_in_use_stay(start_agent: StartAgent, tmp_path: Path) -> None:
    async with start_agent({"id": "sim", "engine": "simulated", "preload": True}) as agent:
        await agent.until("sim", WorkerState.READY)
        done = await cli(agent, "rm", "sim")
        assert done.code == 1
        assert (
            done.output
            == "iir-agent: The model sim is loaded. Unload it first: iir-agent unload sim\n"
        )
