"""Plain calls on kept connections, which the agent serves without a task: nobody can tell."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from local_agent.domain import ModelId
from shared.testing.engine import EngineOptions
from shared.testing.steps import Latency
from shared.testing.wire import Exchange, WireServer
from tests.local_agent.harness import CHAT, MESSAGES, RunningAgent, StartAgent, external, until

BODY: dict[str, Any] = {"model": "tiny", "messages": MESSAGES}


@asynccontextmanager
async def warm(
    start: StartAgent, ttft_s: float = 0.0, **fields: Any
) -> AsyncIterator[RunningAgent]:
    """Start an agent whose connection to the engine is kept, and whose client's head is known."""
    options = EngineOptions(models=("engine/tiny",), latency=Latency(ttft_s=ttft_s))
    async with start(engine=options, **fields) as agent:
        for _ in range(2):
            assert (await agent.client.post(CHAT, json=BODY)).status_code == 200
        yield agent


async def test_a_plain_call_needs_no_task(start_agent: StartAgent) -> None:
    async with warm(start_agent, ttft_s=0.1) as agent, anyio.create_task_group() as group:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await agent.client.post(CHAT, json=BODY))

        group.start_soon(ask)
        await until(lambda: agent.agent.intake.in_hand)
        assert agent.worker("tiny").in_flight == 1
        assert not any("run_asgi" in repr(task.get_coro()) for task in asyncio.all_tasks())
        await until(lambda: answers)
        assert answers[0].status_code == 200
        await agent.until_idle()
        assert agent.agent.intake.in_hand == 0


@pytest.mark.parametrize("after_s", [0.0, 0.7])
async def test_whoever_leaves_has_the_worker_freed(start_agent: StartAgent, after_s: float) -> None:
    async with warm(start_agent) as agent:
        agent.engine.script.add("stall")
        asking = asyncio.create_task(agent.client.post(CHAT, json=BODY))
        await until(lambda: len([s for s in agent.engine.requests if s.method == "POST"]) == 3)
        await asyncio.sleep(after_s)  # after 0.5 s it has a task
        gone_s = time.perf_counter()
        asking.cancel()
        await agent.engine.journal.wait_for(lambda: agent.sent.aborted)
        assert time.perf_counter() - gone_s < 0.2
        await agent.until_idle()
        assert agent.agent.intake.in_hand == 0
        assert (await agent.client.post(CHAT, json=BODY)).status_code == 200


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("status:code=500", 500),
        ("cut", 200),
        ("garbage", 502),
        ("empty_200", 502),
        ("redirect", 502),
    ],
)
async def test_what_is_no_answer_is_told_as_ever(
    start_agent: StartAgent, fault: str, status: int
) -> None:
    async with warm(start_agent) as agent:
        agent.engine.script.add(fault)
        answer = await agent.client.post(CHAT, json=BODY)
        assert answer.status_code == status
        assert answer.headers.get("x-iir-attempts") == ("2" if fault == "cut" else None)
        assert answer.headers["x-request-id"]
        await agent.until_idle()
        assert agent.agent.intake.in_hand == 0
        assert (await agent.client.post(CHAT, json=BODY)).status_code == 200


async def test_who_finds_no_slot_waits_for_one(start_agent: StartAgent) -> None:
    async with warm(start_agent, ttft_s=0.05) as agent:
        agent.agent.supervisor.admission._workers[ModelId("tiny")].line.limit = 1
        answers = await asyncio.gather(*(agent.client.post(CHAT, json=BODY) for _ in range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        await agent.until_idle()


async def test_a_slow_answer_comes(start_agent: StartAgent) -> None:
    async with warm(start_agent, ttft_s=0.7) as agent:
        answer = await agent.client.post(CHAT, json=BODY)
        assert answer.status_code == 200
        assert answer.json()["choices"]
        await agent.until_idle()
        assert agent.agent.intake.in_hand == 0


MESSAGE = b'{"id":"a","type":"message","content":[]}'
STARTED = b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'
STOPPED = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
BUSY = (
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
)


@pytest.mark.parametrize("last", [STOPPED, BUSY])
async def test_a_stream_that_nobody_asked_for_is_judged_by_its_api(
    start_agent: StartAgent, last: bytes
) -> None:
    is_stream = False

    async def answering(exchange: Exchange) -> None:
        is_chat = exchange.request.method == "POST"
        kind = "text/event-stream" if is_chat and is_stream else "application/json"
        pieces = (STARTED, last) if is_chat and is_stream else (MESSAGE,)
        length = None if is_chat and is_stream else len(MESSAGE)
        await exchange.send_head(200, [("content-type", kind)], length=length)
        for piece in pieces:
            await exchange.send_body(piece)
        await exchange.end_body()

    server = WireServer(answering)
    model = external(await server.start("127.0.0.1", 0), apis=["chat", "messages"])
    async with start_agent(model) as agent:
        for _ in range(2):
            answer = await agent.client.post("/v1/messages", json=BODY)
            assert answer.content == MESSAGE
        is_stream = True
        answer = await agent.client.post("/v1/messages", json=BODY)
        events = [event for event in answer.content.split(b"\n\n") if event]
        assert events[0] == STARTED.strip()
        assert len(events) == 2
        assert events[1].splitlines()[0] == last.splitlines()[0]
    await server.close()
