"""The simulated engine speaks OpenAI's dialect: asked by the real SDK, and by hand."""

from __future__ import annotations

import asyncio
import base64
import json
import struct

import httpx
import openai
import pytest

from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.personas import LLAMACPP, OPENAI
from shared.testing.steps import Latency
from tests.shared.simulated import CHAT, TOOLS, client_of, events, sdk_of


async def test_the_sdk_gets_the_same_answer_whole_and_streamed() -> None:
    async with sdk_of() as sdk:
        whole = await sdk.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hello small world"}]
        )
        stream = await sdk.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello small world"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    text = whole.choices[0].message.content
    assert text is not None
    assert text.startswith("Simulated answer ")
    assert text.endswith(": hello small world")
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices].count("stop") == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 6)
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    assert whole.system_fingerprint == "simulated-engine"


async def test_the_synchronous_sdk_works_as_well() -> None:
    async with running(SimulatedEngine()) as base_url:

        def ask() -> str | None:
            with openai.OpenAI(base_url=f"{base_url}/v1", api_key="k") as sdk:
                made = sdk.chat.completions.create(
                    model="simulated", messages=[{"role": "user", "content": "hi"}], max_tokens=1
                )
                assert made.choices[0].finish_reason == "length"
                return made.choices[0].message.content

        assert await asyncio.to_thread(ask) == "Simulated"


async def test_usage_is_not_streamed_unasked() -> None:
    async with client_of() as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in answer.headers
    assert all(event["choices"] and "usage" not in event for event in events(answer.text))


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_the_limit_of_tokens_is_kept(field: str) -> None:
    async with client_of(tokens=10) as client:
        cut = (await client.post("/v1/chat/completions", json={**CHAT, field: 4})).json()
        whole = (await client.post("/v1/chat/completions", json=CHAT)).json()
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 4)
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] == 10


async def test_answers_depend_on_prompt_and_seed_only() -> None:
    async def ask(client: httpx.AsyncClient, **more: object) -> str:
        made = await client.post("/v1/chat/completions", json={**CHAT, **more})
        text: str = made.json()["choices"][0]["message"]["content"]
        return text

    async with client_of() as one, client_of(seed=7) as other:
        assert await ask(one) == await ask(one)
        assert await ask(one) != await ask(one, seed=3)
        assert await ask(one, seed=7) == await ask(other)


async def test_stop_and_n_are_respected() -> None:
    body = {**CHAT, "n": 2, "stop": ["small"]}
    async with client_of() as client:
        whole = (await client.post("/v1/chat/completions", json=body)).json()
        stream = await client.post("/v1/chat/completions", json={**body, "stream": True})
        one = (await client.post("/v1/chat/completions", json={**CHAT, "stop": "world"})).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert all("small" not in choice["message"]["content"] for choice in whole["choices"])
    assert one["choices"][0]["message"]["content"].endswith("hello small")
    choices = [event["choices"][0] for event in events(stream.text)]  # type: ignore[index]
    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        text = "".join(choice["delta"].get("content", "") for choice in mine)
        assert text == whole["choices"][index]["message"]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["stop"]


async def test_a_required_tool_is_called() -> None:
    body = {**CHAT, "tools": TOOLS, "tool_choice": "required"}
    async with client_of() as client:
        whole = (await client.post("/v1/chat/completions", json=body)).json()
        stream = await client.post("/v1/chat/completions", json={**body, "stream": True})
    choice = whole["choices"][0]
    call = choice["message"]["tool_calls"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {
        "city": "simulated",
        "unit": "C",
        "unknown": "simulated",
    }
    deltas = [event["choices"][0]["delta"] for event in events(stream.text)]  # type: ignore[index]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [("id" in c, c["index"]) for c in calls] == [(i == 0, 0) for i in range(len(calls))]
    assert calls[0]["id"] == call["id"]
    assert "".join(c["function"]["arguments"] for c in calls) == call["function"]["arguments"]


async def test_a_named_tool_is_called_and_auto_is_text() -> None:
    named = {"type": "function", "function": {"name": "no_arguments"}}
    async with client_of() as client:
        for choice, expected in ((named, "tool_calls"), ("auto", "stop")):
            body = {**CHAT, "tools": TOOLS, "tool_choice": choice}
            made = (await client.post("/v1/chat/completions", json=body)).json()
            assert made["choices"][0]["finish_reason"] == expected


async def test_completions_take_text_lists_and_tokens() -> None:
    async with client_of() as client:
        for prompt, choices, tokens in (
            ("a b", 1, 2),
            (["a b", "c"], 2, 3),
            ([1, 2, 3], 1, 3),
            ([[1, 2], [3]], 2, 3),
        ):
            body = {"model": "tiny", "prompt": prompt}
            whole = (await client.post("/v1/completions", json=body)).json()
            assert whole["object"] == "text_completion"
            assert len(whole["choices"]) == choices
            assert whole["usage"]["prompt_tokens"] == tokens
        stream = await client.post(
            "/v1/completions", json={"model": "tiny", "prompt": "a b", "stream": True}
        )
    async with client_of(persona=OPENAI) as client:
        other = await client.post(
            "/v1/completions", json={"model": "tiny", "prompt": "a b", "stream": True}
        )
    last = events(other.text)[-1]["choices"][0]  # type: ignore[index]
    assert (last["text"], last["finish_reason"]) == ("", "stop")
    found = [event["choices"][0] for event in events(stream.text)]  # type: ignore[index]
    assert "".join(choice["text"] for choice in found).endswith(": a b")
    assert found[-1]["finish_reason"] == "stop"


async def test_embeddings_are_the_same_in_both_encodings() -> None:
    async with sdk_of() as sdk:
        listed = await sdk.embeddings.create(
            model="tiny", input=["a", "b", "a"], encoding_format="float"
        )
        packed = await sdk.embeddings.create(model="tiny", input=["a", "b", "a"])
    a, b, again = (row.embedding for row in listed.data)
    assert a == again != b
    assert len(a) == 8
    assert sum(value * value for value in a) == pytest.approx(1)
    assert packed.data[1].embedding == pytest.approx(b, abs=1e-6)
    assert listed.usage.prompt_tokens == 3


async def test_embeddings_by_hand() -> None:
    body = {"model": "tiny", "input": [7, 8], "encoding_format": "base64", "dimensions": 40}
    async with client_of() as client:
        made = (await client.post("/v1/embeddings", json=body)).json()
    raw = base64.b64decode(made["data"][0]["embedding"])
    assert len(struct.unpack("<40f", raw)) == 40
    assert made["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


async def test_the_models_say_that_they_are_simulated() -> None:
    async with client_of(models=("tiny", "org/big")) as client:
        listed = await client.get("/v1/models")
        one = await client.get("/v1/models/org/big")
        escaped = await client.get("/v1/models/org%2Fbig")
        unknown = await client.get("/v1/models/nope")
    rows = listed.json()["data"]
    assert [(row["id"], row["owned_by"]) for row in rows] == [
        ("tiny", "simulated"),
        ("org/big", "simulated"),
    ]
    assert listed.headers["server"] == "simulated-engine"
    found = [{**row, "created": 0} for row in (one.json(), escaped.json(), rows[1])]
    assert found[0] == found[1] == found[2]
    assert unknown.status_code == 404


BAD: list[tuple[str, object, str]] = [
    ("/v1/chat/completions", {"model": "tiny"}, "messages"),
    ("/v1/chat/completions", {"model": "tiny", "messages": ["x"]}, "role"),
    ("/v1/chat/completions", {**CHAT, "max_tokens": 0}, "max_tokens"),
    ("/v1/chat/completions", {**CHAT, "max_tokens": True}, "max_tokens"),
    ("/v1/chat/completions", {**CHAT, "max_tokens": 9000}, "context length"),
    ("/v1/chat/completions", {**CHAT, "temperature": -1}, "temperature"),
    ("/v1/chat/completions", {**CHAT, "tool_choice": "required"}, "tool_choice"),
    ("/v1/chat/completions", {**CHAT, "tools": TOOLS, "tool_choice": {}}, "tool"),
    ("/v1/chat/completions", [1], "JSON object"),
    ("/v1/completions", {"model": "tiny"}, "prompt"),
    ("/v1/embeddings", {"model": "tiny", "input": [{}]}, "input"),
]


@pytest.mark.parametrize(("path", "body", "named"), BAD)
async def test_wrong_requests_are_refused(path: str, body: object, named: str) -> None:
    async with client_of() as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == 400


@pytest.mark.parametrize("raw", [b"{", b'"\\ud800"', b"[" * 200_000, b"\xff"])
async def test_what_is_no_json_is_refused(raw: bytes) -> None:
    async with client_of() as client:
        answer = await client.post("/v1/chat/completions", content=raw)
    assert answer.status_code == 400


async def test_a_model_that_loads_is_unavailable_until_it_is_there() -> None:
    now_s = 100.0
    engine = SimulatedEngine(EngineOptions(load_s=5, persona=LLAMACPP), clock=lambda: now_s)
    async with (
        running(engine) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        health = await client.get("/health")
        chat = await client.post("/v1/chat/completions", json=CHAT)
        assert (health.status_code, chat.status_code) == (503, 503)
        assert health.json()["error"]["message"] == "Loading model"
        now_s = 105.0
        assert (await client.get("/health")).status_code == 200


async def test_latency_comes_before_the_first_token_and_between_tokens() -> None:
    latency = Latency(ttft_s=0.02, itl_s=0.005)
    engine = SimulatedEngine(EngineOptions(latency=latency, tokens=5))
    async with (
        running(engine) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        for is_stream in (True, False):
            body = {**CHAT, "model": "simulated", "stream": is_stream}
            await client.post("/v1/chat/completions", json=body)
            seen = engine.requests[-1]
            assert seen.ended_s is not None
            assert seen.first_byte_s is not None
            assert seen.ended_s - seen.started_s >= 0.04 * 0.95
            waited_s = seen.first_byte_s - seen.started_s
            assert (waited_s < 0.02) if is_stream else (waited_s >= 0.04 * 0.95)


async def test_content_parts_and_missing_content_are_read() -> None:
    parts = [{"type": "text", "text": "look at"}, {"type": "image_url", "image_url": {}}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    async with client_of() as client:
        made = await client.post(
            "/v1/chat/completions", json={"model": "tiny", "messages": messages}
        )
        silent = await client.post(
            "/v1/chat/completions", json={"messages": [{"role": "system", "content": "be kind"}]}
        )
    assert "look at" in made.json()["choices"][0]["message"]["content"]
    assert silent.json()["choices"][0]["message"]["content"].endswith("be kind")
