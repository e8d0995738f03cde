"""Plain calls without a task, where something is wrong: with the client, the endpoint, or with us."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
import pytest

from router.api.inference import InferenceRoutes
from router.backends.openai import OpenAIBackend
from router.dispatch.metrics import RouterMetrics
from shared.http.lean_transport import LeanTransport
from shared.kit.clock import monotonic
from shared.testing.engine import EngineOptions
from shared.testing.raw_client import connected
from shared.testing.steps import Latency
from tests.router.harness import StartRouter
from tests.router.kept import answer_from, ask, request_of, warm
from tests.router.scenes import (
    CHAT,
    chat,
    one_engine,
    settled,
    usage_of,
)


async def test_nothing_is_served_behind_a_refusal(start_router: StartRouter) -> None:
    async with warm(start_router) as scene, connected(scene.router.base_url) as (reader, writer):
        for _ in range(2):
            writer.write(request_of(chat()))
            assert (await answer_from(reader))[0] == 200
        writer.write(request_of(chat(), "connection: upgrade", "upgrade: h2c"))
        assert (await answer_from(reader))[0] == 400
        writer.write(request_of(chat()))
        await asyncio.sleep(0.1)  # would be served within this
        with anyio.fail_after(5):
            assert await reader.read() == b""
        await settled(scene.router)
        assert [row["status"] for row in await usage_of(scene.router)] == [200] * 4


async def test_one_trial_goes_to_an_endpoint_that_failed(start_router: StartRouter) -> None:
    ahead_s = 0.0
    options = EngineOptions(models=("tiny",), latency=Latency(ttft_s=0.1))
    settings = {"router_breaker_failures": 1, "router_probe_s": 0}

    def clock() -> float:
        return monotonic() + ahead_s

    async with one_engine(start_router, options, clock=clock, **settings) as scene:
        for _ in range(6):
            await ask(scene.client)
        scene.engine.script.add("status:code=500")
        assert (await scene.client.post(CHAT, json=chat())).status_code == 500
        assert (await scene.client.post(CHAT, json=chat())).status_code == 503
        ahead_s = 3600.0
        sent = len(scene.engine.requests)
        asking = [scene.client.post(CHAT, json=chat()) for _ in range(6)]
        statuses = [answer.status_code for answer in await asyncio.gather(*asking)]
        assert sorted(statuses) == [200, 503, 503, 503, 503, 503]
        assert len(scene.engine.requests) == sent + 1


async def test_a_defect_gives_everything_back(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise ValueError

    async with warm(start_router) as scene:
        for owner, name, status in (
            (OpenAIBackend, "plain_request", 500),
            (LeanTransport, "send_now", 500),
            (InferenceRoutes, "route_headers", 500),
            (RouterMetrics, "record", 200),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, broken)
                assert (await scene.client.post(CHAT, json=chat())).status_code == status
            await settled(scene.router)
            assert (await scene.client.post(CHAT, json=chat())).status_code == 200
        found = [(row["status"], row["error"]) for row in await usage_of(scene.router)]
        assert found.count((0, "internal_error")) == 3


async def test_caches_are_told_that_answers_differ_by_page(start_router: StartRouter) -> None:
    async with warm(start_router, router_cors_origins="https://page.example") as scene:
        answer = await scene.client.post(CHAT, json=chat())
        assert answer.headers["vary"] == "Origin"
        page = {"origin": "https://page.example"}
        answer = await scene.client.post(CHAT, json=chat(), headers=page)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"


async def test_who_may_not_ask_hears_so_before_the_body(start_router: StartRouter) -> None:
    async with warm(start_router) as scene, connected(scene.router.base_url) as (reader, writer):
        request = request_of(chat(filler="x" * 5000)).replace(b"localhost", b"evil.test")
        writer.write(request[:1000])
        started_s = time.perf_counter()
        assert (await answer_from(reader))[0] == 403
        assert time.perf_counter() - started_s < 0.2


@pytest.mark.parametrize("first", [chat(stream=True), chat()])
async def test_a_bad_request_is_never_taken_for_the_one_before(
    start_router: StartRouter, first: dict[str, Any]
) -> None:
    async with warm(start_router) as scene, connected(scene.router.base_url) as (reader, writer):
        for again in (first, chat(), first):
            writer.write(request_of(again))
            if again.get("stream"):
                with anyio.fail_after(5):
                    await reader.readuntil(b"0\r\n\r\n")
            else:
                assert (await answer_from(reader))[0] == 200
            asked = len(scene.engine.requests)
            for bad, status in ((b"[]", 400), (b"{", 400), (b'{"model":"nobody"}', 404)):
                head = request_of(chat()).partition(b"content-length")[0]
                writer.write(head + b"content-length: %d\r\n\r\n%b" % (len(bad), bad))
                assert (await answer_from(reader))[0] == status
            assert len(scene.engine.requests) == asked
