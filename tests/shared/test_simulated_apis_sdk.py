"""The simulated engine speaks Responses and Messages: asked by the real SDKs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anthropic
import httpx
import openai
import pytest
from anthropic.types import MessageParam

from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.personas import ANTHROPIC, LLAMACPP, OPENAI, VLLM, Persona
from tests.loopback_sdks import anthropic_at, openai_at

TEXT = "Simulated answer 6d8a84: hello small world"
WORDS = len(TEXT.split())
HELLO: list[MessageParam] = [{"role": "user", "content": "hello small world"}]
RESPONSES = pytest.mark.parametrize("persona", [VLLM, OPENAI], ids=lambda p: p.name)
MESSAGES = pytest.mark.parametrize(
    "persona", [VLLM, ANTHROPIC, replace(VLLM, ends_with_done=True)], ids=["vllm", "own", "done"]
)


@asynccontextmanager
async def openai_sdk(persona: Persona, fault: str = "") -> AsyncIterator[openai.AsyncOpenAI]:
    """Ask an engine with this persona; every request has this fault."""
    async with (
        running(SimulatedEngine(EngineOptions(persona=persona))) as base_url,
        openai_at(base_url, default_headers={"x-sim-fault": fault}) as sdk,
    ):
        yield sdk


@asynccontextmanager
async def anthropic_sdk(
    persona: Persona, fault: str = "", **options: str
) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Ask an engine with this persona; every request has this fault."""
    made = EngineOptions(persona=persona, **options)  # type: ignore[arg-type]
    async with (
        running(SimulatedEngine(made)) as base_url,
        anthropic_at(base_url, default_headers={"x-sim-fault": fault}) as sdk,
    ):
        yield sdk


@RESPONSES
async def test_a_response_whole(persona: Persona) -> None:
    async with openai_sdk(persona) as sdk:
        found = await sdk.responses.create(
            model="simulated", input="hello small world", instructions="be brief"
        )
    assert (found.output_text.split(": ")[1], found.status) == ("hello small world", "completed")
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens) == (5, WORDS)
    assert found.usage.total_tokens == 5 + WORDS


@RESPONSES
async def test_a_response_is_cut_at_its_limit(persona: Persona) -> None:
    async with openai_sdk(persona) as sdk:
        found = await sdk.responses.create(
            model="simulated",
            input=[{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
            max_output_tokens=2,
        )
    assert (found.output_text, found.status) == ("Simulated answer", "incomplete")
    assert found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"


async def test_a_response_as_events() -> None:
    async with openai_sdk(OPENAI) as sdk:
        stream = await sdk.responses.create(
            model="simulated", input="hello small world", stream=True
        )
        events = [event async for event in stream]
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * WORDS,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize("persona", [OPENAI, VLLM, replace(VLLM, ends_with_done=True)])
@pytest.mark.parametrize("fault", ["", "split", "crlf", "multi_line", "sse_comment", "after_done"])
async def test_the_strict_helper_takes_a_response(persona: Persona, fault: str) -> None:
    async with (
        openai_sdk(persona, fault) as sdk,
        sdk.responses.stream(model="simulated", input="hello small world") as stream,
    ):
        final = await stream.get_final_response()
    assert final.output_text.endswith(": hello small world")
    assert final.usage is not None
    assert final.usage.output_tokens == WORDS


async def test_a_response_that_ends_at_its_limit_says_so_in_its_last_event() -> None:
    async with openai_sdk(OPENAI) as sdk:
        stream = await sdk.responses.create(
            model="simulated", input="hello", max_output_tokens=1, stream=True
        )
        last = [event async for event in stream][-1]
    assert last.type == "response.incomplete"
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == 1


async def test_llama_cpp_does_not_number_its_events() -> None:
    async with openai_sdk(LLAMACPP) as sdk:
        stream = await sdk.responses.create(model="simulated", input="hello", stream=True)
        events = [event async for event in stream]
        with pytest.raises(TypeError):
            async with sdk.responses.stream(model="simulated", input="hello") as helper:
                await helper.until_done()
    assert events[-1].type == "response.completed"
    assert {getattr(event, "sequence_number", None) for event in events} == {None}


@MESSAGES
async def test_a_message_whole(persona: Persona) -> None:
    async with anthropic_sdk(persona) as sdk:
        found = await sdk.messages.create(
            model="simulated",
            max_tokens=50,
            system=[{"type": "text", "text": "be brief"}],
            messages=[{"role": "user", "content": [{"type": "text", "text": "hello small world"}]}],
        )
    block = found.content[0]
    assert block.type == "text"
    assert block.text.endswith(": hello small world")
    assert (found.stop_reason, found.stop_sequence) == ("end_turn", None)
    assert (found.usage.input_tokens, found.usage.output_tokens) == (5, WORDS)


@pytest.mark.parametrize(
    ("limit", "stop", "reason"),
    [(2, [], "max_tokens"), (50, ["small", " hello"], "stop_sequence"), (50, ["no"], "end_turn")],
)
async def test_why_a_message_ends(limit: int, stop: list[str], reason: str) -> None:
    async with anthropic_sdk(ANTHROPIC) as sdk:
        found = await sdk.messages.create(
            model="simulated", max_tokens=limit, stop_sequences=stop, messages=HELLO
        )
    assert found.stop_reason == reason
    assert found.stop_sequence == (" hello" if reason == "stop_sequence" else None)


async def test_a_message_as_events() -> None:
    """The SDK keeps the ping to itself."""
    async with anthropic_sdk(ANTHROPIC) as sdk:
        stream = await sdk.messages.create(
            model="simulated", max_tokens=50, messages=HELLO, stream=True
        )
        events = [event async for event in stream]
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * WORDS,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    delta = events[-2]
    assert delta.type == "message_delta"
    assert (delta.delta.stop_reason, delta.usage.output_tokens) == ("end_turn", WORDS)


@MESSAGES
@pytest.mark.parametrize("fault", ["", "split", "crlf", "multi_line", "sse_comment", "after_done"])
async def test_the_helper_takes_a_message(persona: Persona, fault: str) -> None:
    async with (
        anthropic_sdk(persona, fault) as sdk,
        sdk.messages.stream(model="simulated", max_tokens=50, messages=HELLO) as stream,
    ):
        texts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert "".join(texts).startswith("Simulated answer")
    assert final.usage.output_tokens == WORDS
    assert (final.usage.input_tokens, final.stop_reason) == (3, "end_turn")


@MESSAGES
async def test_tokens_are_counted(persona: Persona) -> None:
    async with anthropic_sdk(persona) as sdk:
        found = await sdk.messages.count_tokens(
            model="simulated", system="be brief", messages=HELLO
        )
    assert found.input_tokens == 5


@MESSAGES
@pytest.mark.parametrize(
    ("fault", "error", "kind"),
    [
        ("status:code=400", anthropic.BadRequestError, "invalid_request_error"),
        ("status:code=401", anthropic.AuthenticationError, "authentication_error"),
        ("status:code=429,retry_after=1", anthropic.RateLimitError, "rate_limit_error"),
        ("status:code=500", anthropic.InternalServerError, "api_error"),
        ("status:code=529", anthropic.OverloadedError, "overloaded_error"),
    ],
)
async def test_refusals_raise_the_right_class(
    persona: Persona, fault: str, error: type[anthropic.APIStatusError], kind: str
) -> None:
    async with anthropic_sdk(persona, f"{fault},shape=anthropic") as sdk:
        with pytest.raises(error) as caught:
            await sdk.messages.create(model="simulated", max_tokens=5, messages=HELLO)
    assert (type(caught.value), caught.value.type) == (error, kind)


async def test_anthropic_names_its_requests_and_errors() -> None:
    async with anthropic_sdk(ANTHROPIC, api_key="other") as sdk:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await sdk.messages.create(model="simulated", max_tokens=5, messages=HELLO)
    assert caught.value.request_id == "req_simulated"
    async with anthropic_sdk(ANTHROPIC, api_key="k") as sdk:
        with pytest.raises(anthropic.NotFoundError):
            await sdk.messages.create(model="unknown", max_tokens=5, messages=HELLO)
        listed = await sdk.models.list()
    assert [model.id for model in listed.data] == ["simulated"]


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/v1/messages", {"messages": HELLO}, "max_tokens: Field required"),
        ("/v1/messages", {"max_tokens": 5}, "messages: Field required"),
        ("/v1/messages", {"messages": [{"role": "x"}], "max_tokens": 5}, "messages: each needs"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9000}, "This model's maximum"),
        ("/v1/messages/count_tokens", {}, "messages: Field required"),
        ("/v1/responses", {}, "1 validation error: input"),
        ("/v1/responses", {"input": [1]}, "1 validation error: input"),
        ("/v1/responses", {"input": "x", "max_output_tokens": 0}, "max_output_tokens must be"),
    ],
)
async def test_wrong_requests_are_refused(path: str, body: dict[str, object], text: str) -> None:
    async with (
        running(SimulatedEngine()) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        found = await client.post(path, json={"model": "simulated", **body})
    assert found.status_code == 400
    assert found.json()["error"]["message"].startswith(text)
    assert ("type" in found.json()) == path.startswith("/v1/messages")


async def test_each_persona_has_its_routes() -> None:
    found: dict[str, list[int]] = {}
    for persona in (VLLM, LLAMACPP, OPENAI, ANTHROPIC):
        async with (
            running(SimulatedEngine(EngineOptions(persona=persona))) as base_url,
            httpx.AsyncClient(base_url=base_url) as client,
        ):
            paths = ("chat/completions", "responses", "messages", "messages/count_tokens")
            found[persona.name] = [(await client.get(f"/v1/{p}")).status_code for p in paths]
            refused = await client.post("/v1/messages", json={})
    assert found == {
        "vllm": [405] * 4,
        "llamacpp": [405] * 4,
        "openai": [405, 405, 404, 404],
        "anthropic": [400] * 4,
    }
    assert refused.json()["error"]["message"] == "anthropic-version: header is required"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "k"}, 400),
        ({"authorization": "Bearer k"}, 400),
        ({"authorization": "k"}, 401),
        ({"x-api-key": "other"}, 401),
        ({}, 401),
    ],
)
async def test_anthropic_takes_the_key_in_either_header(
    headers: dict[str, str], status: int
) -> None:
    """Its SDK 2.13 sends `authorization`; its documentation names `x-api-key`."""
    options = EngineOptions(persona=ANTHROPIC, api_key="k")
    async with (
        running(SimulatedEngine(options)) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        found = await client.post("/v1/messages", json={}, headers=headers)
    assert found.status_code == status
