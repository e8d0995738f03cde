"""The inference routes as clients see them: what passes, in which bytes, and when."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
from typing import Any

import anyio
import openai
import pytest

from router.store.catalog import add_alias
from shared.testing.engine import EngineOptions
from shared.testing.raw_client import call_raw, connected, render_request, split_answer
from shared.testing.steps import Latency
from tests.loopback_sdks import openai_at
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, MESSAGES, chat, error_of, one_engine
from tests.shared.pumps import watch_pumps


async def test_every_route_streams_and_answers_whole(start_router: StartRouter) -> None:
    async with (
        one_engine(start_router) as scene,
        openai_at(scene.router.base_url) as sdk,
    ):
        messages: Any = MESSAGES
        whole = await sdk.chat.completions.create(model="tiny", messages=messages)
        stream = await sdk.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        completion = await sdk.completions.create(model="tiny", prompt="hello")
        parts = await sdk.completions.create(model="tiny", prompt="hello", stream=True)
        assert "".join([p.choices[0].text async for p in parts if p.choices]) == (
            completion.choices[0].text
        )
        embeddings = await sdk.embeddings.create(model="tiny", input=["a", "b"])
        assert len(embeddings.data) == 2
        assert (await sdk.models.retrieve("tiny")).owned_by == "engine"


async def test_the_synchronous_sdk(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:

        def ask() -> tuple[str | None, str, str]:
            with openai.OpenAI(base_url=f"{scene.router.base_url}/v1", api_key="any") as sdk:
                messages: Any = MESSAGES
                raw = sdk.chat.completions.with_raw_response.create(model="tiny", messages=messages)
                with sdk.chat.completions.create(
                    model="tiny", messages=messages, stream=True
                ) as stream:
                    text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
                return raw.parse().choices[0].message.content, text, raw.headers["x-request-id"]

        whole, streamed, request_id = await asyncio.to_thread(ask)
        assert whole == streamed != ""
        assert request_id == scene.engine.requests[0].header("x-request-id")


async def test_what_goes_upstream_is_what_came_but_for_the_model(start_router: StartRouter) -> None:
    raw = (
        b'{"model":"tiny", "temperature":1.0,"top_k" : 5,"seed":12345678901234567890, '
        b'"chat_template_kwargs":{"a" :[1.50,1e2]},"messages":[{"role":"user","content":"\\u00e4"}],'
        b'"x":null}'
    )
    async with one_engine(start_router) as scene:
        sent = {
            "content-type": "application/json",
            "authorization": "Bearer sk-client-secret",
            "cookie": "session=1",
            "openai-beta": "x=1",
            "openai-organization": "org",
            "x-llm-d-target": "1",
            "x-stainless-os": "Linux",
            "x-request-id": "given-1",
        }
        answer = await scene.client.post(CHAT, content=raw, headers=sent)
        assert answer.headers["x-request-id"] == "given-1"
        seen = scene.engine.requests[0]
        for piece in (
            b'"temperature":1.0',
            b'"top_k":5',
            b'"seed":12345678901234567890',
            b'{"a" :[1.50,1e2]}',
            b'[{"role":"user","content":"\\u00e4"}]',
            b'"x":null',
        ):
            assert piece in seen.raw
        headers = {name for name, _ in seen.headers}
        assert headers == {
            *("host", "content-type", "content-length", "accept", "accept-encoding"),
            *("user-agent", "x-request-id", "openai-beta"),
        }
        assert b"secret" not in json.dumps(seen.as_json()).encode()


async def test_a_smuggled_second_model_is_the_one_that_is_checked(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router) as scene:
        body = b'{"model":"tiny","messages":[],"model":"forbidden"}'
        answer = await scene.client.post(
            CHAT, content=body, headers={"content-type": "application/json"}
        )
        assert error_of(answer)["code"] == "model_not_found"
        assert scene.engine.requests == []


async def test_a_stream_comes_through_byte_for_byte(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        body = chat(stream=True, stream_options={"include_usage": True})
        _, direct = split_answer(await call_raw(scene.upstream, CHAT, body))
        head, routed = split_answer(
            await call_raw(scene.router.base_url, CHAT, body, headers={"host": "localhost"})
        )

        def comparable(data: bytes) -> list[Any]:
            assert data.endswith(b"data: [DONE]\n\n")
            events = [json.loads(e[6:]) for e in data.split(b"\n\n")[:-2]]
            return [{**e, "id": "", "created": 0} for e in events]

        assert comparable(direct) == comparable(routed)
        assert len(direct.split(b"\n\n")) == len(routed.split(b"\n\n"))
        for line in (
            b"content-type: text/event-stream",
            b"cache-control: no-cache",
            b"x-accel-buffering: no",
            b"x-iir-model: tiny",
            b"x-iir-endpoint: engine",
            b"x-iir-zone: local",
            b"x-iir-reason: only",
            b"x-iir-attempts: 1",
            b"x-iir-overhead-ms: ",
        ):
            assert line in head.lower()
        for line in (b"server:", b"content-encoding:", b"content-length:"):
            assert line not in head.lower()


async def test_chunks_leave_as_they_arrive(start_router: StartRouter) -> None:
    options = EngineOptions(models=("tiny",), tokens=6, latency=Latency(itl_s=0.04))
    async with one_engine(start_router, options) as scene:
        times: list[float] = []
        clock = asyncio.get_running_loop().time
        async with scene.client.stream("POST", CHAT, json=chat(stream=True)) as answer:
            async for _ in answer.aiter_raw():
                times.append(clock())
        assert len(times) >= 6
        assert times[-1] - times[0] > 0.15


async def test_the_body_ends_with_done_even_if_the_upstream_hangs(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router) as scene:
        for fault in ("hang_after_done", "after_done"):
            scene.engine.script.add(fault)
            with anyio.fail_after(3):
                answer = await scene.client.post(CHAT, json=chat(stream=True))
            assert answer.text.endswith("data: [DONE]\n\n")
            assert "after the end" not in answer.text
        # the next request of the same client is served at once, on the same connection
        with anyio.fail_after(3):
            assert (await scene.client.post(CHAT, json=chat())).status_code == 200


async def test_upstream_connections_are_used_again(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for stream in (True, False, True, True):
            assert (await scene.client.post(CHAT, json=chat(stream=stream))).status_code == 200
            await asyncio.sleep(0.01)
        assert {seen.connection for seen in scene.engine.requests} == {1}
        assert not any(seen.aborted for seen in scene.engine.requests)


async def test_headers_of_the_upstream_stay_there(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for stream in (True, False):
            scene.engine.script.add("headers")
            answer = await scene.client.post(CHAT, json=chat(stream=stream))
            assert answer.status_code == 200
            assert answer.headers["x-request-id"] != "req-simulated"
            hidden = {"set-cookie", "server", "x-powered-by", "alt-svc", "keep-alive"}
            assert not hidden & set(answer.headers)


async def test_embeddings_pass_in_both_encodings(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        body = {"model": "tiny", "input": "a", "encoding_format": "base64"}
        answer = await scene.client.post("/v1/embeddings", json=body)
        assert base64.b64decode(answer.json()["data"][0]["embedding"])
        # an unknown `stream` is the engine's business here
        answer = await scene.client.post(
            "/v1/embeddings", json={"model": "tiny", "input": "a", "stream": True}
        )
        assert answer.status_code == 200


async def test_an_alias_goes_upstream_under_its_models_name(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        scene.router.write(lambda c: add_alias(c, "org/Small:8b", "tiny"))
        await scene.router.catch_up()
        answer = await scene.client.post(CHAT, json=chat("org/Small:8b"))
        assert answer.headers["x-iir-model"] == "tiny"
        assert json.loads(scene.engine.requests[-1].raw)["model"] == "tiny"


async def test_a_large_body_passes(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        text = "x" * 5_000_000
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
        answer = await scene.client.post(CHAT, json=body)
        assert answer.status_code == 200
        assert text.encode() in scene.engine.requests[0].raw


async def test_a_client_that_pipelines_gets_answers_in_order(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        one = render_request(
            "POST", CHAT, chat(), {"host": "localhost", "connection": "keep-alive"}
        )
        last = render_request("POST", CHAT, chat("unknown"), {"host": "localhost"})
        async with connected(scene.router.base_url) as (reader, writer):
            writer.write(one + one + last)
            found = await reader.read(-1)
        assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"200", b"200", b"404"]


async def test_a_router_that_stopped_leaves_no_thread(start_router: StartRouter) -> None:
    def threads() -> list[str]:
        names = [thread.name for thread in threading.enumerate()]
        return [name for name in names if name.startswith("registry-")]

    async with one_engine(start_router):
        assert threads()
    with anyio.fail_after(5):
        while threads():
            await anyio.sleep(0.01)


@pytest.mark.parametrize("client", ["lean", "aiohttp"])
async def test_streams_go_through_the_pump_where_both_ends_are_ours(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    """What a stream costs rests on this, and nothing else would show that it is gone."""
    pumped = watch_pumps(monkeypatch)
    async with one_engine(start_router, router_transport=client) as scene:
        for path in (CHAT, "/v1/completions"):
            answer = await scene.client.post(path, json=chat(stream=True, prompt="hello"))
            assert answer.content.endswith(b"data: [DONE]\n\n")
        await scene.client.post(CHAT, json=chat())
    assert pumped == [client == "lean"] * 2
