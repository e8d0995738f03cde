"""Chat through a real router to a simulated engine, as OpenAI's SDK sees it."""

from __future__ import annotations

from typing import Any

import anyio

from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.steps import Latency
from tests.loopback_sdks import openai_at
from tests.router.harness import StartRouter

MESSAGES: Any = [{"role": "user", "content": "hello small world"}]


async def test_the_sdk_chats_and_streams(start_router: StartRouter) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with (
        running(engine) as upstream,
        start_router(upstream=upstream, models=("tiny",)) as router,
        openai_at(router.base_url) as sdk,
    ):
        raw = await sdk.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES)
        whole = raw.parse().choices[0].message.content
        stream = await sdk.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert whole
        assert "".join(parts) == whole
        assert raw.headers["x-iir-endpoint"] == "engine"
        assert raw.headers["x-iir-attempts"] == "1"
        assert raw.headers["x-request-id"]


async def test_a_client_that_leaves_ends_the_upstream(start_router: StartRouter) -> None:
    engine = SimulatedEngine(
        EngineOptions(models=("tiny",), latency=Latency(itl_s=0.05), tokens=500)
    )
    async with (
        running(engine) as upstream,
        start_router(upstream=upstream, models=("tiny",)) as router,
    ):
        body = {"model": "tiny", "messages": MESSAGES, "stream": True}
        async with router.client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for _ in response.aiter_bytes():
                break
        with anyio.fail_after(5):
            while router.router.fleet.in_flight():
                await anyio.sleep(0.01)
            seen = (await router.client.get(f"{upstream}/sim/requests")).json()
        assert seen[-1]["aborted"] is True
