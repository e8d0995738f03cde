"""Responses and Messages through the agent: bytes, errors in each API's shape, and what waits."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import anyio
import httpx
import openai
import pytest

from shared.contracts.apis import API_PATHS, APIS
from shared.testing.engine import EngineOptions
from shared.testing.personas import LLAMACPP
from tests.local_agent.harness import (
    CHAT,
    ENGINE_FAILURES,
    MESSAGES,
    PATIENCE_S,
    StartAgent,
    external,
)
from tests.loopback_sdks import anthropic_at, openai_at

RESPONSES, MESSAGE, COUNT = "/v1/responses", "/v1/messages", "/v1/messages/count_tokens"
PATHS = [RESPONSES, MESSAGE, COUNT]
STREAMS = [CHAT, RESPONSES, MESSAGE]
ODD = (
    b'{"model":"%s","messages":[{"role":"user","content":"caf\\u00e9 \xc3\xa9"}],"input":"hello",'
    b'"max_tokens":9,"top_k":1.50e1,"thinking":{"a":[1, 2 ,{}]}%s}'
)
JSON = {"content-type": "application/json", "x-request-id": "same-for-both"}
ALL: Any = {"apis": list(APIS)}


def speaking(start_agent: StartAgent, **settings: Any) -> Any:
    """Start an agent whose model's server speaks all APIs."""
    return start_agent(apis=APIS, **settings)


def body_of(path: str, **more: object) -> dict[str, object]:
    own: dict[str, object] = {"input": "hello"} if path == RESPONSES else {"messages": MESSAGES}
    if path == MESSAGE:
        own["max_tokens"] = 20
    return {"model": "tiny", **own, **more}


def inner(answer: httpx.Response, path: str) -> dict[str, Any]:
    """Return the error within an answer, whose shape has to be that of the path's API."""
    data = answer.json()
    error: dict[str, Any] = data["error"]
    if path.startswith(MESSAGE):
        assert data["type"] == "error"
        assert set(error) == {"type", "message", "code"}
    else:
        assert set(data) == {"error"}
        assert set(error) >= {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize("more", [b"", b',"stream":true'])
@pytest.mark.parametrize("path", PATHS)
async def test_bytes_pass(start_agent: StartAgent, path: str, more: bytes, prefix: str) -> None:
    async with speaking(start_agent) as agent:
        body = ODD % (b"engine/tiny", more)
        direct = await agent.client.post(agent.worker_url + path, content=body, headers=JSON)
        through = await agent.client.post(
            prefix + path.removeprefix("/v1"), content=ODD % (b"default", more), headers=JSON
        )
        assert direct.status_code == through.status_code == 200
        assert through.content.replace(b"sim-2", b"sim-1") == direct.content
        sent = agent.sent
        assert (sent.path, sent.raw) == (path, body)
        is_stream = bool(more) and path != COUNT
        assert through.headers["content-type"].startswith("text/event-stream") is is_stream
        await agent.until_idle()


async def test_headers_of_the_apis_go_on_and_those_of_the_client_stay(
    start_agent: StartAgent,
) -> None:
    kept = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b", "openai-beta": "c"}
    own = {"x-api-key": "secret", "cookie": "a=b", "x-iir-keep-alive": "off"}
    async with speaking(start_agent) as agent:
        await agent.client.post(MESSAGE, json=body_of(MESSAGE), headers={**kept, **own})
        sent = agent.sent
        assert {name: sent.header(name) for name in kept} == kept
        assert not {name for name, _ in sent.headers} & own.keys()


@pytest.mark.parametrize("path", [*PATHS, CHAT])
async def test_our_own_errors_have_the_shape_of_the_api(start_agent: StartAgent, path: str) -> None:
    cases: list[tuple[str, dict[str, Any], int, str, str]] = [
        ("GET", {}, 405, "method_not_allowed", "invalid_request_error"),
        ("POST", {"content": b"{}"}, 415, "unsupported_media_type", "invalid_request_error"),
        ("POST", {"content": b"{", "headers": JSON}, 400, "invalid_json", "invalid_request_error"),
        ("POST", {"json": {"model": "nobody"}}, 404, "model_not_found", "not_found_error"),
        ("POST", {"json": {"model": "chatty"}}, 404, "unsupported_api", "not_found_error"),
    ]
    async with start_agent() as first:
        entries = (
            external(first.worker_url, **ALL),
            external(first.worker_url, model="chatty", apis=["embeddings"]),
        )
        async with start_agent(*entries) as agent:
            for method, request, status, code, type_ in cases:
                answer = await agent.client.request(method, path, **request)
                error = inner(answer, path)
                assert (answer.status_code, error["code"]) == (status, code)
                if path.startswith(MESSAGE):
                    assert error["type"] == type_
                assert answer.headers["x-iir-error-origin"] == "client"
            assert agent.client.base_url != first.client.base_url
        asked = {seen.path for seen in first.engine.requests}
        assert asked <= {"/v1/models", "/metrics"}, "probes only"


async def test_only_what_the_engine_speaks_is_sent_to_it(start_agent: StartAgent) -> None:
    async with start_agent(simulated(persona="anthropic")) as agent:
        for api, paths in API_PATHS.items():
            for path in paths:
                body = body_of(f"/v1{path}")
                version = {"anthropic-version": "2023-06-01"}
                answer = await agent.client.post(f"/v1{path}", json=body, headers=version)
                assert answer.status_code == (200 if api == "messages" else 404)
        infer = await agent.client.post("/infer", json={"prompt": "hello", "model": "tiny"})
        assert infer.json()["error"]["code"] == "unsupported_api"
        listed = (await agent.client.get("/v1/models/tiny")).json()
        assert listed["apis"] == ["messages"]


@pytest.mark.parametrize("path", PATHS[:2])
async def test_an_engine_that_fails_gives_a_clear_error(start_agent: StartAgent, path: str) -> None:
    async with speaking(start_agent) as agent:
        for fault, status, code in ENGINE_FAILURES:
            agent.engine.script.add(fault, fault)  # a connection cut at once is taken for stale
            answer = await agent.client.post(path, json=body_of(path))
            agent.engine.script.clear()
            assert (answer.status_code, inner(answer, path)["code"]) == (status, code), fault
            assert "10.1.2.3" not in answer.text
            assert answer.headers["x-request-id"]
            if status == 503 or "retry_after" in fault:
                assert int(answer.headers["retry-after"]) >= 1
            await agent.until_idle()


@pytest.mark.parametrize("persona", [LLAMACPP, None])
async def test_an_engine_s_own_errors_keep_their_reason(
    start_agent: StartAgent, persona: Any
) -> None:
    """llama.cpp and vLLM give numbers as codes, and OpenAI's shape on Anthropic's routes."""
    engine = EngineOptions(models=("engine/tiny",), **({"persona": persona} if persona else {}))
    async with speaking(start_agent, engine=engine) as agent:
        for path, stream in [(RESPONSES, True), (MESSAGE, True), (MESSAGE, False)]:
            body = body_of(path, stream=stream)
            body.pop("input" if path == RESPONSES else "messages")
            answer = await agent.client.post(path, json=body)
            error = inner(answer, path)
            assert answer.status_code == 400
            assert error["type"] == "invalid_request_error" or path == RESPONSES
            assert isinstance(error["code"], str)
            assert answer.headers["x-iir-error-origin"] == "upstream"


def events(text: str) -> list[dict[str, Any]]:
    found = [event for event in text.split("\n\n") if event and not event.startswith(":")]
    data = [event.split("data: ", 1)[1] for event in found]
    return [json.loads(each) for each in data if each != "[DONE]"]


@pytest.mark.parametrize("fault", ["cut:after=2", "no_done:after=2", "bad_json:after=2"])
@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_that_breaks_says_so(start_agent: StartAgent, path: str, fault: str) -> None:
    async with speaking(start_agent) as agent:
        agent.engine.script.add(fault)
        answer = await agent.client.post(path, json=body_of(path, stream=True))
        assert answer.status_code == 200
        last = events(answer.text)[-1]
        assert last["error"]["code"] in {"upstream_interrupted", "upstream_failed"}
        if path == MESSAGE:
            assert last["type"] == "error"
            assert last["error"]["type"] == "api_error"
        if path != CHAT:
            assert answer.text.rstrip().split("\n\n")[-1].startswith("event: error\n")
        await agent.until_idle()


async def test_a_server_that_ignores_stream_is_no_stream(start_agent: StartAgent) -> None:
    """SDKs would take the JSON for a stream without events."""
    async with speaking(start_agent) as agent:
        for path in STREAMS:
            agent.engine.script.add("json_200")
            answer = await agent.client.post(path, json=body_of(path, stream=True))
            assert answer.status_code == 502, path
            assert inner(answer, path)["code"] == "upstream_failed"


async def test_the_sdks_speak_to_the_agent(start_agent: StartAgent) -> None:
    messages: Any = MESSAGES
    async with (
        speaking(start_agent) as agent,
        openai_at(agent.base_url) as of_openai,
        anthropic_at(agent.base_url) as of_anthropic,
    ):
        whole = await of_openai.responses.create(model="default", input="hello")
        stream = await of_openai.responses.create(model="default", input="hello", stream=True)
        texts = [e.delta async for e in stream if e.type == "response.output_text.delta"]
        assert "".join(texts) == whole.output_text != ""
        asked: Any = {"model": "default", "messages": messages}
        message = await of_anthropic.messages.create(max_tokens=20, **asked)
        async with of_anthropic.messages.stream(max_tokens=20, **asked) as streamed:
            text = "".join([part async for part in streamed.text_stream])
        assert text == message.content[0].text != ""
        assert (await of_anthropic.messages.count_tokens(**asked)).input_tokens > 0
        with pytest.raises(anthropic.NotFoundError) as missing:
            await of_anthropic.messages.create(model="nobody", max_tokens=1, messages=messages)
        assert missing.value.request_id
        with pytest.raises(openai.NotFoundError) as absent:
            await of_openai.responses.create(model="nobody", input="hello")
        assert absent.value.code == "model_not_found"
        agent.engine.script.add("cut:after=2")
        with pytest.raises(anthropic.APIStatusError):
            async with of_anthropic.messages.stream(max_tokens=20, **asked) as streamed:
                await streamed.until_done()


# ── comments to who waits ────────────────────────────────────────────────────────────────────


def simulated(**options: object) -> dict[str, Any]:
    return {"id": "tiny", "engine": "simulated", "options": options}


@pytest.mark.slow
@pytest.mark.parametrize("path", STREAMS)
async def test_a_client_that_waits_for_a_load_gets_comments(
    start_agent: StartAgent, path: str
) -> None:
    async with start_agent(simulated(load_ms=1500), agent_keep_alive_s=0.05) as agent:
        body = body_of(path, stream=True)
        text = ""
        async with agent.client.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-accel-buffering"] == "no"
            async for piece in answer.aiter_text():
                text += piece
        assert text.startswith(": keep-alive\n\n: keep-alive\n\n")
        assert ": keep-alive" not in text[text.index("data: ") :]
        assert events(text)


async def test_who_wants_none_gets_none(start_agent: StartAgent) -> None:
    off = {"x-iir-keep-alive": "off"}
    async with start_agent(simulated(ttft_ms=300), agent_keep_alive_s=0.05) as agent:
        await agent.client.post(CHAT, json=body_of(CHAT))  # it is loaded now
        patient = await agent.client.post(CHAT, json=body_of(CHAT, stream=True))
        other = await agent.client.post(CHAT, json=body_of(CHAT, stream=True), headers=off)
        whole = await agent.client.post(CHAT, json=body_of(CHAT))
        assert b": keep-alive" in patient.content
        assert b": keep-alive" not in other.content + whole.content
        ask = {"prompt": "hello", "stream": True, "model": "tiny"}
        infer = await agent.client.post("/infer", json=ask)
        assert infer.text.startswith(": keep-alive\n\n")
        assert infer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("path", STREAMS)
async def test_a_load_that_takes_too_long_ends_the_comments_with_an_error(
    start_agent: StartAgent, path: str
) -> None:
    entry = simulated(load_ms=60_000)
    async with start_agent(entry, agent_keep_alive_s=0.05, agent_load_wait_s=0.4) as agent:
        kept = await agent.client.post(path, json=body_of(path, stream=True))
        assert kept.status_code == 200
        last = events(kept.text)[-1]
        assert last["error"]["code"] == "model_loading"
        # the router asks for none, and so sees the status and goes elsewhere
        off = {"x-iir-keep-alive": "off"}
        told = await agent.client.post(path, json=body_of(path, stream=True), headers=off)
        assert told.status_code == 503
        assert int(told.headers["retry-after"]) >= 1
        assert inner(told, path)["code"] == "model_loading"


async def test_a_client_that_leaves_while_it_waits_frees_its_place(start_agent: StartAgent) -> None:
    async with speaking(start_agent, agent_keep_alive_s=0.05) as agent:
        agent.engine.script.add("stall:ms=0,after=0")
        body = body_of(MESSAGE, stream=True)
        async with agent.client.stream("POST", MESSAGE, json=body) as answer:
            pieces = answer.aiter_text()
            assert (await anext(pieces)).startswith(": keep-alive")
            assert agent.worker("tiny").in_flight == 1
        with anyio.fail_after(PATIENCE_S):
            await agent.until_idle()
