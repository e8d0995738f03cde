"""Responses and Messages through the router, as the official SDKs see them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anthropic
import httpx
import openai
import pytest

from router.store.catalog import get_provider, update_provider
from shared.contracts.apis import API_PATHS, APIS
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.personas import LLAMACPP, VLLM, Persona
from tests.loopback_sdks import anthropic_at, openai_at
from tests.router.agents import TOKEN, agent_of, scene_of
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, MESSAGES, key, one_engine, settled, two_engines, usage_of

RESPONSES, MESSAGE, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
STREAMS = [CHAT, RESPONSES, MESSAGE]
ASKED: Any = {"model": "tiny", "messages": MESSAGES}
EVERY = {"id": "tiny", "status": "loaded", "apis": list(APIS)}


def body_of(path: str, **more: object) -> dict[str, object]:
    own: dict[str, object] = {"input": "hello"} if path == RESPONSES else {"messages": MESSAGES}
    if path == MESSAGE:
        own["max_tokens"] = 20
    return {"model": "tiny", **own, **more}


async def let_speak(router: RunningRouter, *names: str, apis: tuple[str, ...] = APIS) -> None:
    """Tell the registry which APIs providers speak."""
    for name in names:
        own = replace(router.write(partial(get_provider, name=name)), apis=apis)
        router.write(partial(update_provider, provider=own))
    await router.catch_up()


@dataclass
class Spoken:
    router: RunningRouter
    engine: SimulatedEngine
    openai: openai.AsyncOpenAI
    anthropic: anthropic.AsyncAnthropic

    @property
    def client(self) -> httpx.AsyncClient:
        return self.router.client


@asynccontextmanager
async def speaking(
    start: StartRouter, persona: Persona = VLLM, **settings: Any
) -> AsyncIterator[Spoken]:
    """Start a router whose model speaks every API, with both SDKs pointed at it."""
    options = EngineOptions(models=("tiny",), persona=persona)
    async with one_engine(start, options, **settings) as scene:
        await let_speak(scene.router, "engine")
        url = scene.router.base_url
        async with (
            openai_at(url) as of_openai,
            anthropic_at(url) as of_anthropic,
        ):
            yield Spoken(scene.router, scene.engine, of_openai, of_anthropic)


@pytest.mark.parametrize("persona", [VLLM, LLAMACPP], ids=lambda p: str(p.name))
async def test_openai_s_sdk_creates_and_streams_responses(
    start_router: StartRouter, persona: Persona
) -> None:
    async with speaking(start_router, persona) as scene:
        sdk = scene.openai
        raw = await sdk.responses.with_raw_response.create(model="tiny", input="hello")
        whole = raw.parse()
        assert whole.status == "completed"
        assert raw.headers["x-iir-model"] == "tiny"
        stream = await sdk.responses.create(model="tiny", input="hello", stream=True)
        events = [event async for event in stream]
        texts = [e.delta for e in events if e.type == "response.output_text.delta"]
        assert "".join(texts) == whole.output_text != ""
        assert events[-1].type == "response.completed"
        await settled(scene.router)
        rows = await usage_of(scene.router)
        assert [row["output_tokens"] for row in rows] == [len(texts)] * 2


@pytest.mark.parametrize("persona", [VLLM, LLAMACPP], ids=lambda p: str(p.name))
async def test_anthropic_s_sdk_creates_streams_and_counts(
    start_router: StartRouter, persona: Persona
) -> None:
    async with speaking(start_router, persona) as scene:
        sdk = scene.anthropic
        message = await sdk.messages.create(max_tokens=20, **ASKED)
        async with sdk.messages.stream(max_tokens=20, **ASKED) as stream:
            texts = [text async for text in stream.text_stream]
            final = await stream.get_final_message()
        assert "".join(texts) == message.content[0].text != ""
        assert final.stop_reason == message.stop_reason == "end_turn"
        counted = await sdk.messages.count_tokens(**ASKED)
        assert counted.input_tokens > 0
        assert message._request_id
        sent = scene.engine.requests[-1]
        assert sent.header("anthropic-version")
        assert sent.header("x-api-key") is None
        await settled(scene.router)
        rows = await usage_of(scene.router)
        assert [row["output_tokens"] for row in rows][:2] == [message.usage.output_tokens] * 2


@pytest.mark.parametrize("path", [RESPONSES, MESSAGE, COUNT, CHAT])
async def test_the_routes_are_there_without_v1(start_router: StartRouter, path: str) -> None:
    async with speaking(start_router) as scene:
        answer = await scene.client.post(path.removeprefix("/v1"), json=body_of(path))
        assert answer.status_code == 200
        assert scene.engine.requests[-1].path == path


async def test_errors_of_ours_have_the_sdks_classes(start_router: StartRouter) -> None:
    async with speaking(start_router) as scene:
        with pytest.raises(openai.NotFoundError) as unknown:
            await scene.openai.responses.create(model="nobody", input="hello")
        assert unknown.value.code == "model_not_found"
        with pytest.raises(anthropic.NotFoundError) as nobody:
            await scene.anthropic.messages.create(model="nobody", max_tokens=1, messages=[])
        assert nobody.value.request_id
        assert nobody.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
        await let_speak(scene.router, "engine", apis=("chat",))
        with pytest.raises(openai.NotFoundError) as silent:
            await scene.openai.responses.create(model="tiny", input="hello")
        assert silent.value.code == "unsupported_api"
        for ask in (scene.anthropic.messages.create, scene.anthropic.messages.count_tokens):
            more: Any = {"max_tokens": 1} if ask == scene.anthropic.messages.create else {}
            with pytest.raises(anthropic.NotFoundError) as mute:
                await ask(**ASKED, **more)
            assert mute.value.body["error"]["code"] == "unsupported_api"  # type: ignore[index]
        assert all(seen.path == "/v1/models" for seen in scene.engine.requests)


async def test_a_key_is_taken_as_either_sdk_sends_it(start_router: StartRouter) -> None:
    async with speaking(start_router) as scene:
        credential = scene.router.write(key())
        await scene.router.catch_up()
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await scene.anthropic.messages.create(max_tokens=20, **ASKED)
        assert refused.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
        with pytest.raises(openai.AuthenticationError):
            await scene.openai.responses.create(model="tiny", input="hello")
        mine = scene.anthropic.with_options(api_key=credential)
        assert (await mine.messages.create(max_tokens=20, **ASKED)).content
        own = scene.openai.with_options(api_key=credential)
        assert (await own.responses.create(model="tiny", input="hello")).output_text


@pytest.mark.parametrize("persona", [VLLM, LLAMACPP], ids=lambda p: str(p.name))
async def test_errors_of_an_engine_have_the_sdks_classes(
    start_router: StartRouter, persona: Persona
) -> None:
    classes: list[tuple[int, Any, Any]] = [
        (400, openai.BadRequestError, anthropic.BadRequestError),
        (429, openai.RateLimitError, anthropic.RateLimitError),
        (401, openai.InternalServerError, anthropic.InternalServerError),
        (500, openai.InternalServerError, anthropic.InternalServerError),
    ]
    async with speaking(start_router, persona, router_attempts=1) as scene:
        for code, of_openai, of_anthropic in classes:
            scene.engine.script.add(f"status:code={code},shape=persona")
            with pytest.raises(of_openai) as refused:
                await scene.openai.responses.create(model="tiny", input="hello")
            assert refused.value.status_code == (502 if code == 401 else code)
            scene.engine.script.add(f"status:code={code},shape=persona")
            with pytest.raises(of_anthropic) as other:
                await scene.anthropic.messages.create(max_tokens=20, **ASKED)
            assert other.value.body["type"] == "error"


async def test_a_stream_that_breaks_raises_in_both_sdks(start_router: StartRouter) -> None:
    async with speaking(start_router) as scene:
        for fault in ("cut:after=2", "no_done:after=2", "bad_json:after=2"):
            scene.engine.script.add(fault)
            with pytest.raises(openai.APIError):
                stream = await scene.openai.responses.create(
                    model="tiny", input="hello", stream=True
                )
                async for _event in stream:
                    pass
            scene.engine.script.add(fault)
            with pytest.raises(anthropic.APIStatusError):
                async with scene.anthropic.messages.stream(max_tokens=20, **ASKED) as message:
                    await message.until_done()


# ── comments to who waits ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", STREAMS)
async def test_a_client_that_waits_gets_comments_unless_it_wants_none(
    start_router: StartRouter, path: str
) -> None:
    off = {"x-iir-keep-alive": "off"}
    async with speaking(start_router, router_keep_alive_s=0.05) as scene:
        for headers in ({}, off):
            scene.engine.script.add("slow_headers:ms=200")
            answer = await scene.client.post(path, json=body_of(path, stream=True), headers=headers)
            assert answer.status_code == 200
            assert (b": keep-alive" in answer.content) is (headers == {})
        assert scene.engine.requests[-1].header("x-iir-keep-alive") is None


async def test_the_sdks_do_not_mind_comments(start_router: StartRouter) -> None:
    async with speaking(start_router, router_keep_alive_s=0.05) as scene:
        scene.engine.script.add("slow_headers:ms=200")
        stream = await scene.openai.responses.create(model="tiny", input="hello", stream=True)
        assert [event.type async for event in stream][-1] == "response.completed"
        scene.engine.script.add("slow_headers:ms=200")
        async with scene.anthropic.messages.stream(max_tokens=20, **ASKED) as message:
            assert (await message.get_final_message()).content


@pytest.mark.parametrize("path", STREAMS)
async def test_an_error_after_comments_is_the_last_event(
    start_router: StartRouter, path: str
) -> None:
    async with speaking(start_router, router_keep_alive_s=0.05, router_attempts=1) as scene:
        scene.engine.script.add("status:code=500;slow_headers:ms=200")
        answer = await scene.client.post(path, json=body_of(path, stream=True))
        assert answer.status_code == 200
        last = answer.text.rstrip().split("\n\n")[-1]
        assert json.loads(last.split("data: ", 1)[1])["error"]["message"]
        assert last.startswith("event: error\n") is (path != CHAT)


@pytest.mark.parametrize("path", STREAMS)
async def test_comments_of_an_upstream_commit_to_nothing(
    start_router: StartRouter, path: str
) -> None:
    """Its first event is an error, so another endpoint is asked, whatever came before."""
    async with two_engines(start_router) as scene:
        await let_speak(scene.router, "first", "second")
        scene.first.script.add("error_event:after=0,shape=openai;sse_comment:after=0")
        answer = await scene.client.post(path, json=body_of(path, stream=True))
        assert answer.status_code == 200
        assert answer.headers["x-iir-attempts"] == "2"
        assert answer.headers["x-iir-endpoint"] == "second"
        assert b"event: error" not in answer.content
        assert b"simulated keep-alive" not in answer.content


# ── agents ───────────────────────────────────────────────────────────────────────────────────


async def test_requests_go_to_the_agents_that_speak_the_api(start_router: StartRouter) -> None:
    other = SimulatedEngine(EngineOptions(models=("tiny",), api_key=TOKEN))
    async with scene_of(start_router) as scene, running(other) as other_url:
        quiet = {"id": "tiny", "status": "loaded"}  # an older agent says nothing of APIs
        assert (await scene.agent.register(models=[quiet])).status_code == 200
        for api, paths in API_PATHS.items():
            for path in paths:
                body = {**body_of(f"/v1{path}"), "prompt": "hello", "input": "hello"}
                answer = await scene.client.post(f"/v1{path}", json=body)
                is_default = api in {"chat", "completions", "embeddings"}
                assert answer.status_code == (200 if is_default else 404)
        second = await agent_of(scene.router, other_url, "second")
        second.agent_id = "22222222-2222-4222-8222-222222222222"
        assert (await second.register(models=[EVERY])).status_code == 200
        for path in (RESPONSES, MESSAGE, COUNT):
            for _ in range(3):
                answer = await scene.client.post(path, json=body_of(path))
                assert answer.headers["x-iir-endpoint"] == "agent:second"


async def test_an_agent_is_asked_for_an_answer_without_comments(start_router: StartRouter) -> None:
    """Its 200 must not go out before it knows whether there is an answer; the router's own do."""
    async with scene_of(start_router, router_keep_alive_s=0.05) as scene:
        assert (await scene.agent.register(models=[EVERY])).status_code == 200
        scene.engine.script.add("slow_headers:ms=200")
        answer = await scene.client.post(MESSAGE, json=body_of(MESSAGE, stream=True))
        assert answer.content.startswith(b": keep-alive\n\n")
        assert scene.engine.requests[-1].header("x-iir-keep-alive") == "off"
