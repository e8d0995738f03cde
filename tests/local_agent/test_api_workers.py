"""Requests while workers load, die, come back, and while clients leave."""

from __future__ import annotations

import os
import signal

import anyio
import httpx
import pytest

from local_agent.domain import WorkerState
from local_agent.process import tree
from shared.testing.engine import EngineOptions
from shared.testing.steps import Latency
from tests.local_agent.harness import CHAT, MESSAGES, RunningAgent, StartAgent

SIMULATED = {"id": "sim", "engine": "simulated"}
SLOW = EngineOptions(models=("engine/tiny",), latency=Latency(itl_s=0.02), tokens=2000)
LATE = EngineOptions(models=("engine/tiny",), latency=Latency(ttft_s=30))
BODY = {"model": "sim", "messages": MESSAGES}


async def ask(agent: RunningAgent, **more: object) -> httpx.Response:
    return await agent.client.post(CHAT, json={**BODY, **more})


async def test_a_request_waits_for_its_model_to_load(start_agent: StartAgent) -> None:
    async with start_agent(SIMULATED) as agent:
        answers = []
        async with anyio.create_task_group() as group:
            for _ in range(5):

                async def one() -> None:
                    answers.append(await ask(agent))

                group.start_soon(one)
        assert [answer.status_code for answer in answers] == [200] * 5
        assert agent.worker("sim").state is WorkerState.READY
        events = agent.agent.supervisor.events()
        starts = [event for event in events if event.to_state is WorkerState.STARTING]
        assert len(starts) == 1  # one load for all of them
        assert starts[0].request_id in {answer.headers["x-request-id"] for answer in answers}


async def test_without_waiting_a_request_hears_when_to_come_back(start_agent: StartAgent) -> None:
    async with start_agent(SIMULATED, agent_load_wait_s=0) as agent:
        answer = await ask(agent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-iir-error-origin"] == "agent"
        await agent.until("sim", WorkerState.READY)
        assert (await ask(agent)).status_code == 200


async def test_a_killed_worker_comes_back_while_requests_hear_when(
    start_agent: StartAgent,
) -> None:
    async with start_agent({**SIMULATED, "preload": True}, first_s=0.5) as agent:
        assert (await ask(agent)).status_code == 200
        first = agent.worker("sim").pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        statuses: set[int] = set()
        with anyio.fail_after(20):
            while (answer := await ask(agent)).status_code != 200 or not statuses:
                statuses.add(answer.status_code)
                if answer.status_code == 503:
                    assert answer.json()["error"]["code"] in {"worker_gone", "model_loading"}
                    assert int(answer.headers["retry-after"]) >= 1
                    assert answer.headers["x-iir-error-origin"] == "agent"
                await anyio.sleep(0.02)
        assert statuses == {503}
        assert agent.worker("sim").pid != first
        assert (await agent.client.get("/v1/models/sim")).json()["status"] == {"value": "loaded"}


async def test_a_worker_killed_under_a_stream_ends_it_with_an_error(
    start_agent: StartAgent,
) -> None:
    options = {"itl_ms": 20, "tokens": 5000}
    async with start_agent({**SIMULATED, "options": options}) as agent:
        body = {**BODY, "stream": True}
        async with agent.client.stream("POST", CHAT, json=body) as response:
            text = ""
            async for piece in response.aiter_text():
                if not text:
                    agent.kill("sim")
                text += piece
        assert response.status_code == 200
        assert '"code":"upstream_interrupted"' in text.split("\n\n")[-2]
        await agent.until_idle()


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_leaves_frees_the_engine_at_once(
    start_agent: StartAgent, is_stream: bool
) -> None:
    async with start_agent(engine=SLOW) as agent:
        body: dict[str, object] = {"model": "tiny", "messages": MESSAGES, "stream": is_stream}
        await agent.left_by(agent.client, body, has_begun=is_stream)
        await agent.engine.journal.wait_for(lambda: agent.sent.aborted)
        await agent.until_idle()
        assert agent.engine.slots.running == 0


async def test_a_client_that_leaves_before_the_first_byte_frees_the_engine(
    start_agent: StartAgent,
) -> None:
    async with start_agent(engine=LATE) as agent:
        body: dict[str, object] = {"model": "tiny", "messages": MESSAGES, "stream": True}
        await agent.left_by(agent.client, body, has_begun=False)
        await agent.engine.journal.wait_for(lambda: agent.sent.aborted)
        await agent.until_idle()
        assert agent.sent.events == 0, "it left before the first event"
        assert agent.engine.slots.running == 0


async def test_a_client_that_leaves_during_a_load_leaves_nothing_behind(
    start_agent: StartAgent,
) -> None:
    async with start_agent({**SIMULATED, "options": {"load_ms": 500}}) as agent:
        with anyio.move_on_after(0.2):
            await ask(agent)
        await agent.until("sim", WorkerState.READY)
        assert agent.worker("sim").in_flight == 0
        assert (await ask(agent)).status_code == 200


@pytest.mark.slow
async def test_a_storm_of_leaving_clients_leaks_nothing(start_agent: StartAgent) -> None:
    async with start_agent(engine=SLOW) as agent:
        body = {"model": "tiny", "messages": MESSAGES, "stream": True}

        async def leave() -> None:
            async with agent.client.stream("POST", CHAT, json=body) as response:
                async for _ in response.aiter_bytes():
                    return

        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(leave)
        await agent.until_idle()
        await agent.engine.journal.wait_for(
            lambda: all(seen.aborted for seen in agent.engine.requests if seen.method == "POST")
        )
        assert agent.engine.slots.running == 0


async def test_stopping_leaves_no_process(start_agent: StartAgent) -> None:
    entry = {**SIMULATED, "preload": True}
    async with start_agent(entry, {**entry, "id": "two"}) as agent:
        found = [await agent.until(model, WorkerState.READY) for model in ("sim", "two")]
        pids = [view.pid for view in found]
        assert all(tree.create_time(pid or 0) for pid in pids)
    assert [tree.create_time(pid or 0) for pid in pids] == [None, None]


async def test_stopping_while_a_model_loads_leaves_no_process(start_agent: StartAgent) -> None:
    entry = {**SIMULATED, "preload": True, "options": {"load_ms": 60_000}}
    async with start_agent(entry) as agent:
        pid = (await agent.until("sim", WorkerState.LOADING)).pid
    assert pid is not None
    assert tree.create_time(pid) is None


async def test_the_prompt_and_the_home_stay_out_of_the_log(
    start_agent: StartAgent, capfd: pytest.CaptureFixture[str]
) -> None:
    async with start_agent({**SIMULATED, "preload": True}) as agent:
        secret = "a-very-private-prompt"
        messages = [{"role": "user", "content": secret}]
        await ask(agent, messages=messages)
        await ask(agent, messages=messages, stream=True)
        await agent.client.post("/infer", json={"prompt": secret, "model": "sim"})
        await agent.client.post("/infer", json={"prompt": secret, "model": secret})
        await agent.client.post(CHAT, content=f'{{"{secret}": '.encode())
    texts = [path.read_text() for path in agent.home.rglob("*.log")]
    output = capfd.readouterr()
    texts += [output.out, output.err]
    assert any("worker" in text for text in texts)
    for text in texts:
        assert secret not in text
        assert str(agent.home) not in text
        assert agent.agent.identity.access_token not in text
