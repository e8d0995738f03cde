"""Requests that wait, as clients of the agent see it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest

from local_agent.domain import WorkerState
from shared.kit.clock import monotonic
from shared.testing.engine import EngineOptions
from shared.testing.steps import Latency
from tests.local_agent.harness import CHAT, MESSAGES, RunningAgent, StartAgent, external, until

LATE = EngineOptions(models=("tiny",), latency=Latency(ttft_s=30))
SLOW = EngineOptions(models=("tiny",), latency=Latency(itl_s=0.02), tokens=400)
SIMULATED = {"id": "tiny", "engine": "simulated", "options": {"load_ms": 60_000}}
BODY = {"model": "tiny", "messages": MESSAGES}


@asynccontextmanager
async def limited(
    start: StartAgent, engine: EngineOptions = LATE, **fields: Any
) -> AsyncIterator[RunningAgent]:
    """Start an agent with one slot on an engine, by default one that does not answer."""
    async with (
        start(engine=engine) as first,
        start(external(first.worker_url, parallel=1, **fields)) as agent,
    ):
        yield agent


@asynccontextmanager
async def asking(agent: RunningAgent, **more: Any) -> AsyncIterator[Callable[[], None]]:
    """Let a client ask; it goes away at the end of the block, or when what is yielded is called."""
    scope = anyio.CancelScope()

    async def ask() -> None:
        with scope:
            await agent.client.post(CHAT, json={**BODY, **more})

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        yield scope.cancel
        scope.cancel()


async def test_beyond_the_slots_and_the_queue_it_is_429_at_once(start_agent: StartAgent) -> None:
    async with limited(start_agent, max_queue=1) as agent, asking(agent):
        await until(lambda: agent.worker("tiny").in_flight == 1)
        async with asking(agent):
            await until(lambda: agent.worker("tiny").waiting == 1)
            began = monotonic()
            answer = await agent.client.post(CHAT, json=BODY)
            assert monotonic() - began < 5
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (429, "queue_full")
            assert error["type"] == "rate_limit_error"
            assert "`max_queue` in the agent's YAML file" in error["message"]
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-iir-error-origin"] == "agent"
            queue = agent.agent._subject.queue()
            assert (queue.running, queue.waiting, queue.max_waiting) == (1, 1, 1)
            text = (await agent.client.get("/metrics")).text
            assert 'iir_agent_running{model="tiny"} 1.0' in text
            assert 'iir_agent_waiting{model="tiny"} 1.0' in text


async def test_a_wait_that_is_too_long_is_503_or_the_last_event(start_agent: StartAgent) -> None:
    async with start_agent(engine=LATE) as first:
        entry = external(first.worker_url, parallel=1, queue_max_wait=0.3)
        async with start_agent(entry, agent_keep_alive_s=0.05) as agent, asking(agent):
            await until(lambda: agent.worker("tiny").in_flight == 1)
            answer = await agent.client.post(CHAT, json=BODY)
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                503,
                "queue_timeout",
            )
            assert int(answer.headers["retry-after"]) >= 1
            kept = await agent.client.post(CHAT, json={**BODY, "stream": True})
            assert kept.text.startswith(": keep-alive\n\n")
            assert '"code":"queue_timeout"' in kept.text.split("\n\n")[-2]


async def test_a_client_may_say_how_long_it_waits(start_agent: StartAgent) -> None:
    async with limited(start_agent) as agent, asking(agent):
        await until(lambda: agent.worker("tiny").in_flight == 1)
        for prefer, stream in (("wait=0", False), ("respond-async, wait=0", True)):
            body = {**BODY, "stream": stream}
            answer = await agent.client.post(CHAT, json=body, headers={"prefer": prefer})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_timeout")
    async with start_agent(SIMULATED) as agent:
        answer = await agent.client.post(CHAT, json=BODY, headers={"prefer": "wait=0"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (503, "model_loading")
        assert error["progress"]["phase"] == "loading"
        assert 0 <= error["progress"]["fraction"] <= 1
        await agent.until("tiny", WorkerState.LOADING)


async def test_priorities_have_names(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        for value, status in (("high", 200), ("Low", 200), ("urgent", 400)):
            headers = {"x-iir-priority": value}
            answer = await agent.client.post(CHAT, json=BODY, headers=headers)
            assert answer.status_code == status
        assert "one of: low, normal, high" in answer.json()["error"]["message"]


# ── clients that leave ───────────────────────────────────────────────────────────────────────


async def freed_in_s(agent: RunningAgent, is_there: Callable[[], bool], **more: Any) -> float:
    """Return how long it takes, at best of three, until nothing is left of a client that left."""
    took = []
    for _ in range(3):
        async with asking(agent, **more) as leave:
            await until(is_there)
            began = monotonic()
            leave()
            await until(lambda: not is_there())
            took.append(monotonic() - began)
    return min(took)


async def test_who_leaves_the_queue_is_gone_at_once(start_agent: StartAgent) -> None:
    async with limited(start_agent) as agent, asking(agent):
        await until(lambda: agent.worker("tiny").in_flight == 1)
        assert await freed_in_s(agent, lambda: agent.worker("tiny").waiting == 1) < 0.1
        assert agent.worker("tiny").in_flight == 1


async def test_who_leaves_during_a_load_is_gone_at_once(start_agent: StartAgent) -> None:
    async with start_agent(SIMULATED) as agent:
        assert await freed_in_s(agent, lambda: agent.worker("tiny").waiting == 1) < 0.1


@pytest.mark.parametrize("stream", [True, False])
async def test_who_leaves_a_slot_frees_it_at_once(start_agent: StartAgent, stream: bool) -> None:
    async with limited(start_agent) as agent:
        took = await freed_in_s(agent, lambda: agent.worker("tiny").in_flight == 1, stream=stream)
        assert took < 0.1


async def test_who_leaves_a_stream_lets_the_next_have_its_slot(start_agent: StartAgent) -> None:
    async with limited(start_agent, engine=SLOW) as agent:
        body = {**BODY, "stream": True}
        async with agent.client.stream("POST", CHAT, json=body) as answer:
            pieces = answer.aiter_bytes()
            assert await anext(pieces)
            async with asking(agent, stream=True):
                await until(lambda: agent.worker("tiny").waiting == 1)
                await answer.aclose()
                await until(lambda: agent.worker("tiny").waiting == 0)
                assert agent.worker("tiny").in_flight == 1
        await agent.until_idle()


async def _answer_probe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    await writer.drain()
    writer.close()


@contextmanager
def deaf(port: int) -> Iterator[None]:
    """Listen on a port without taking a connection: whoever connects hangs."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield


async def test_who_leaves_while_the_engine_takes_no_connection_is_gone_at_once(
    start_agent: StartAgent,
) -> None:
    server = await asyncio.start_server(_answer_probe, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with start_agent(external(f"http://127.0.0.1:{port}")) as agent:
        server.close()
        await server.wait_closed()
        with deaf(port):
            took = await freed_in_s(agent, lambda: agent.worker("tiny").in_flight == 1)
            assert agent.worker("tiny").state is WorkerState.EXTERNAL
        assert took < 0.1
