"""What the real SDKs make of the ends that the rules of Responses and Messages let through."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anthropic
import httpx2
import openai
import pytest
from msgspec import Raw

from shared.http.anthropic_errors import anthropic_error_body
from shared.http.errors import (
    ApiError,
    BadRequest,
    Unauthorized,
    UpstreamAnswer,
    UpstreamInterrupted,
)
from shared.http.sse import SseFramer, event_data
from shared.http.streams import MessagesRules, ResponsesRules, StreamRules, Top, Verdict
from shared.testing.apis import answer_request
from shared.testing.dialect import Speaker
from shared.testing.personas import LLAMACPP, PERSONAS, persona_named
from shared.testing.wire import Exchange, WireServer
from tests.loopback_sdks import anthropic_at, openai_at

SAMPLES = Path(__file__).parent / "samples"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
RULES: dict[str, StreamRules] = {RESPONSES: ResponsesRules(), MESSAGES: MessagesRules()}


def events_of(path: str, persona: str = "vllm", *, stream: bool = True) -> list[bytes]:
    """Return a good answer of the API: event by event, or whole if not `stream`."""
    speaker = Speaker(persona=persona_named(persona), model="m", id="1", created=1)
    body: dict[str, object] = {"stream": stream, "max_tokens": 50, "input": "hello"}
    body["messages"] = [{"role": "user", "content": "hello"}]
    return [part.data for part in answer_request(path, body, speaker).parts]


@asynccontextmanager
async def serving(*events: bytes, is_whole: bool = True) -> AsyncIterator[str]:
    """Answer each request with these events, and break off behind them if not `is_whole`."""

    async def handle(exchange: Exchange) -> None:
        headers = [("content-type", "text/event-stream")]
        await exchange.send_head(200, headers, length=None)
        for event in events:
            await exchange.send_body(event)
        if is_whole:
            await exchange.end_body()
        else:
            exchange.close()

    server = WireServer(handle)
    base_url = await server.start("127.0.0.1", 0)
    try:
        yield base_url
    finally:
        await server.close()


async def response_types(base_url: str, *, strict: bool = False) -> list[str]:
    """Return the types of the events that the SDK of OpenAI yields."""
    async with openai_at(base_url) as sdk:
        if strict:
            async with sdk.responses.stream(model="m", input="hello") as helper:
                found = [event.type async for event in helper]
                await helper.get_final_response()
                return list(found)
        stream = await sdk.responses.create(model="m", input="hello", stream=True)
        return [event.type async for event in stream]


async def message_types(base_url: str, *, strict: bool = False) -> list[str]:
    """Return the types of the events that the SDK of Anthropic yields."""
    async with anthropic_at(base_url) as sdk:
        if strict:
            async with sdk.messages.stream(
                model="m", max_tokens=5, messages=[{"role": "user", "content": "hello"}]
            ) as helper:
                return [event.type async for event in helper]
        stream = await sdk.messages.create(
            model="m", max_tokens=5, messages=[{"role": "user", "content": "hello"}], stream=True
        )
        return [event.type async for event in stream]


@pytest.mark.parametrize("strict", [False, True])
async def test_openais_sdk_raises_on_the_error_event(strict: bool) -> None:
    failure = ResponsesRules().error_event(UpstreamInterrupted("It broke off."))
    async with serving(*events_of(RESPONSES)[:5], failure) as base_url:
        with pytest.raises(openai.APIError, match=r"It broke off\.") as caught:
            await response_types(base_url, strict=strict)
    assert (caught.value.code, caught.value.type) == ("upstream_interrupted", "server_error")


def test_the_error_event_of_responses_is_the_apis_own_as_well() -> None:
    event = ResponsesRules().error_event(BadRequest("It is wrong.", param="input"))
    assert event.startswith(b"event: error\n")
    found = json.loads(event_data(event) or b"")
    error = found.pop("error")
    assert found == {
        "type": "error",
        "code": "invalid_request",
        "message": "It is wrong.",
        "param": "input",
    }
    assert error == {**found, "type": "invalid_request_error"}


@pytest.mark.parametrize("strict", [False, True])
async def test_anthropics_sdk_raises_on_the_error_event(strict: bool) -> None:
    failure = MessagesRules().error_event(UpstreamInterrupted("It broke off."))
    async with serving(*events_of(MESSAGES)[:3], failure) as base_url:
        with pytest.raises(anthropic.APIStatusError, match=r"It broke off\.") as caught:
            await message_types(base_url, strict=strict)
    assert caught.value.type == "api_error"


async def test_a_clean_end_too_early_is_no_error_to_either_sdk() -> None:
    """Why the relay has to tell it: only the strict helper of OpenAI's notices."""
    async with serving(*events_of(RESPONSES)[:5]) as base_url:
        assert (await response_types(base_url))[-1] == "response.output_text.delta"
        with pytest.raises(RuntimeError):
            await response_types(base_url, strict=True)
    async with serving(*events_of(MESSAGES)[:4]) as base_url:
        assert (await message_types(base_url))[-1] == "content_block_delta"
        assert (await message_types(base_url, strict=True))[-1] == "text"


async def test_a_cut_is_an_error_to_both_sdks() -> None:
    """Anthropic's lets the one of its transport through."""
    async with serving(*events_of(RESPONSES)[:5], is_whole=False) as base_url:
        with pytest.raises(openai.APIConnectionError):
            await response_types(base_url)
    async with serving(*events_of(MESSAGES)[:4], is_whole=False) as base_url:
        with pytest.raises((httpx2.RemoteProtocolError, anthropic.APIConnectionError)):
            await message_types(base_url)


async def test_the_sdks_lose_a_last_event_without_its_blank_line() -> None:
    for path, types in ((RESPONSES, response_types), (MESSAGES, message_types)):
        *events, last = events_of(path)
        async with serving(*events, last[:-1]) as base_url:
            assert len(await types(base_url)) == len([e for e in events if b"ping" not in e])


async def test_an_own_error_event_of_responses_is_yielded() -> None:
    failure = b'event: error\ndata: {"type":"error","code":"x","message":"y","param":null}\n\n'
    assert judge(ResponsesRules(), failure) is Verdict.FAILED
    async with serving(*events_of(RESPONSES)[:5], failure) as base_url:
        assert (await response_types(base_url))[-1] == "error"


def judge(rules: StreamRules, event: bytes) -> Verdict:
    data = event_data(event)
    assert data is not None
    found = {key: json.dumps(value) for key, value in json.loads(data).items()}
    top = {key: found[key].encode() for key in Top.__struct_fields__ if key in found}
    return rules.judge(event, data, Top(**{key: Raw(value) for key, value in top.items()}))


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
@pytest.mark.parametrize("persona", [persona.name for persona in PERSONAS])
def test_only_the_last_event_is_the_last(path: str, persona: str) -> None:
    verdicts = [judge(RULES[path], event) for event in events_of(path, persona)]
    assert verdicts == [*[Verdict.PASS] * (len(verdicts) - 1), Verdict.LAST]


@pytest.mark.parametrize(("name", "path"), [("responses", RESPONSES), ("messages", MESSAGES)])
def test_a_recorded_stream_of_llama_cpp(name: str, path: str) -> None:
    """The simulated engine sends the same events with the same keys."""
    events = SseFramer().feed((SAMPLES / f"llamacpp_{name}_stream.txt").read_bytes())
    verdicts = [judge(RULES[path], event) for event in events]
    assert verdicts == [*[Verdict.PASS] * (len(verdicts) - 1), Verdict.LAST]
    simulated = {kind(event): event for event in events_of(path, LLAMACPP.name)}
    assert list(dict.fromkeys(map(kind, events))) == list(simulated)
    for event in events:
        keys = set(json.loads(event_data(event) or b"")) - {"timings"}
        assert keys <= set(json.loads(event_data(simulated[kind(event)]) or b""))


@pytest.mark.parametrize(("name", "path"), [("responses", RESPONSES), ("messages", MESSAGES)])
def test_a_recorded_answer_of_llama_cpp(name: str, path: str) -> None:
    recorded = json.loads((SAMPLES / f"llamacpp_{name}.json").read_bytes())
    simulated = json.loads(events_of(path, LLAMACPP.name, stream=False)[0])
    assert recorded.keys() - {"completed_at"} <= simulated.keys()
    assert recorded["usage"].keys() <= simulated["usage"].keys()


def kind(event: bytes) -> bytes:
    return event.split(b"\n", maxsplit=1)[0]


@pytest.mark.parametrize(
    ("data", "status", "type_"),
    [
        ('{"type":"error","error":{"type":"overloaded_error","message":"m"}}', 529, None),
        ('{"type":"error","error":{"type":"rate_limit_error","message":"m"}}', 429, None),
        ('{"type":"error","error":{"type":"invalid_request_error","message":"m"}}', 400, None),
        (
            '{"type":"error","error":{"type":"authentication_error","message":"m"}}',
            502,
            "api_error",
        ),
        ('{"type":"error","error":{"type":"internal_error","message":"m"}}', 502, "api_error"),
        ('{"code":500,"message":"m","type":"server_error"}', 500, "api_error"),
        ('{"message":"m"}', 502, "api_error"),
        ('{"error":{"message":"m","type":"server_error"}}', 502, "api_error"),
        (
            '{"object":"error","message":"m","type":"NotFoundError","code":404}',
            404,
            "not_found_error",
        ),
    ],
)
async def test_every_error_event_becomes_one_that_anthropics_sdk_raises(
    data: str, status: int, type_: str | None
) -> None:
    """In llama.cpp's shape, too, and without a name, which the SDK would drop."""
    with pytest.raises(UpstreamAnswer) as caught:
        judge(MessagesRules(), f"event: error\ndata: {data}\n\n".encode())
    assert (caught.value.status, caught.value.message) == (status, "m")
    event = MessagesRules().error_event(caught.value)
    expected = type_ or json.loads(data)["error"]["type"]
    async with serving(*events_of(MESSAGES)[:3], event) as base_url:
        with pytest.raises(anthropic.APIStatusError) as raised:
            await message_types(base_url)
    assert raised.value.type == expected


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{"message":"m"}}\n\n',
        b'data: {"object":"error","message":"m","type":"InternalServerError"}\n\n',
        b'event: error\ndata: {"message":"m"}\n\n',
        b'event:error\ndata: {"code":500,"message":"m","type":"server_error"}\n\n',
    ],
)
def test_alien_errors_are_found(path: str, event: bytes) -> None:
    with pytest.raises(UpstreamAnswer, match="m"):
        judge(RULES[path], event)


def test_an_unnamed_error_of_messages_is_found() -> None:
    event = b'data: {"type":"error","error":{"type":"api_error","message":"m"}}\n\n'
    with pytest.raises(UpstreamAnswer, match="m"):
        judge(MessagesRules(), event)


@pytest.mark.parametrize(
    ("error", "type_"),
    [
        (Unauthorized("m"), "authentication_error"),
        (BadRequest("m"), "invalid_request_error"),
        (UpstreamInterrupted("m"), "api_error"),
    ],
)
def test_our_own_errors_in_anthropics_shape(error: ApiError, type_: str) -> None:
    found = json.loads(anthropic_error_body(error))
    assert found == {
        "type": "error",
        "error": {"type": type_, "message": "m", "code": error.code},
    }
