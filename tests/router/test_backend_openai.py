"""The OpenAI provider, replayed from cassettes: what goes there, what comes back, what never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from vcr.serialize import deserialize
from vcr.serializers import yamlserializer

from router.domain import DeploymentEntry
from router.store.catalog import add_model
from shared.testing.engine import SimulatedEngine, running
from shared.testing.replay import load_cassette, replaying
from tests.loopback_sdks import openai_at
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, MESSAGES, chat, error_event_of, error_of, usage_of

CASSETTES = Path(__file__).parent / "cassettes"
KEY = "sk-made-up-of-the-router"
Messages = Any


@pytest.fixture(autouse=True)
def own_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXTERNAL_OPENAI_KEY", KEY)


def cassette(name: str) -> Path:
    return CASSETTES / f"openai_{name}.yaml"


def sdk_for(router: RunningRouter) -> openai.AsyncOpenAI:
    return openai_at(router.base_url, api_key="sk-client-secret")


@pytest.mark.parametrize("path", sorted(CASSETTES.glob("*.yaml")), ids=lambda path: path.stem)
def test_cassettes_are_vcrs_and_hold_no_key(path: Path) -> None:
    requests, answers = deserialize(path.read_text(), yamlserializer)
    found = load_cassette(path)
    assert len(found) == len(requests) == len(answers)
    for one, request, answer in zip(found, requests, answers, strict=True):
        assert (one.method, one.path) == (request.method, request.path)
        assert one.answer == answer["body"]["string"]
    for recorded in yaml.safe_load(path.read_text())["interactions"]:
        assert "authorization" not in {name.lower() for name in recorded["request"]["headers"]}


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_a_base_url_with_or_without_v1(start_router: StartRouter, suffix: str) -> None:
    async with (
        replaying(cassette("chat")) as (url, upstream),
        start_router(openai_base_url=url + suffix) as router,
    ):
        answer = await router.client.post(CHAT, json=chat("gpt-4.1"))
        assert answer.status_code == 200
        assert upstream.requests[0].target == "/v1/chat/completions"


async def test_a_chat_goes_there_with_the_routers_credential_alone(
    start_router: StartRouter,
) -> None:
    async with (
        replaying(cassette("chat")) as (url, upstream),
        start_router(openai_base_url=url) as router,
        sdk_for(router) as sdk,
    ):
        messages: Messages = MESSAGES
        raw = await sdk.chat.completions.with_raw_response.create(
            model="gpt-4.1", messages=messages, extra_headers={"openai-organization": "client-org"}
        )
        assert raw.content == load_cassette(cassette("chat"))[0].answer
        assert raw.parse().choices[0].message.content == "Hello! How can I assist you today?"
        sent = upstream.requests[0]
        assert sent.header("authorization") == f"Bearer {KEY}"
        assert "client" not in str(sent.headers)
        assert sent.header("openai-organization") is None
        assert sent.header("cookie") is None
        assert raw.headers["x-iir-zone"] == "cloud"
        assert raw.headers["x-iir-endpoint"] == "openai"
        assert raw.headers["openai-processing-ms"] == "412"
        assert raw.headers["x-ratelimit-remaining-requests"] == "9999"
        hidden = ("set-cookie", "server", "openai-organization", "strict-transport-security")
        assert not [name for name in hidden if name in raw.headers]
        assert raw.headers["x-request-id"] != "req_made_up_by_hand"
        assert KEY not in str(raw.headers) + raw.text
        rows = await usage_of(router)
        assert [(row["zone"], row["input_tokens"], row["output_tokens"]) for row in rows] == [
            ("cloud", 19, 10)
        ]


async def test_a_stream_comes_back_byte_for_byte(start_router: StartRouter) -> None:
    async with (
        replaying(cassette("chat_stream")) as (url, _),
        start_router(openai_base_url=url) as router,
        sdk_for(router) as sdk,
    ):
        body = chat("gpt-4.1", stream=True, stream_options={"include_usage": True})
        answer = await router.client.post(CHAT, json=body)
        assert answer.content == load_cassette(cassette("chat_stream"))[0].answer
        messages: Messages = MESSAGES
        stream = await sdk.chat.completions.create(
            model="gpt-4.1",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello!"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 21
        rows = await usage_of(router)
        assert [(row["input_tokens"], row["output_tokens"]) for row in rows] == [(19, 2)] * 2


@pytest.mark.parametrize("cut_after", range(1, 6))
async def test_a_stream_that_breaks_off_is_no_normal_end(
    start_router: StartRouter, cut_after: int
) -> None:
    async with (
        replaying(cassette("chat_stream"), cut_after=cut_after) as (url, _),
        start_router(openai_base_url=url) as router,
    ):
        body = chat("gpt-4.1", stream=True, stream_options={"include_usage": True})
        answer = await router.client.post(CHAT, json=body)
        recorded = load_cassette(cassette("chat_stream"))[0].pieces()
        assert answer.content.startswith(b"".join(recorded[:cut_after]))
        assert error_event_of(answer.content)["code"] == "upstream_interrupted"


async def test_a_stream_cut_before_its_first_event_is_an_error(start_router: StartRouter) -> None:
    async with (
        replaying(cassette("chat_stream"), cut_after=0) as (url, _),
        start_router(openai_base_url=url) as router,
    ):
        answer = await router.client.post(CHAT, json=chat("gpt-4.1", stream=True))
        assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_interrupted")


async def test_embeddings(start_router: StartRouter) -> None:
    async with (
        replaying(cassette("embeddings")) as (url, upstream),
        start_router(openai_base_url=url) as router,
        sdk_for(router) as sdk,
    ):
        found = await sdk.embeddings.create(model="text-embedding-3-small", input="a")
        assert found.data[0].embedding == [1.0, 2.0, 3.0]
        assert upstream.requests[0].path == "/v1/embeddings"


async def test_401_of_openai_is_the_routers_business(start_router: StartRouter) -> None:
    async with (
        replaying(cassette("error_401")) as (url, _),
        start_router(openai_base_url=url) as router,
        sdk_for(router) as sdk,
    ):
        messages: Messages = MESSAGES
        with pytest.raises(openai.InternalServerError) as raised:
            await sdk.chat.completions.create(model="gpt-4.1", messages=messages)
        assert raised.value.status_code == 502
        assert raised.value.code == "upstream_credential_refused"
        assert "sk-made" not in raised.value.response.text


async def test_429_keeps_its_advice(start_router: StartRouter) -> None:
    async with (
        replaying(cassette("error_429")) as (url, _),
        start_router(openai_base_url=url) as router,
        sdk_for(router) as sdk,
    ):
        messages: Messages = MESSAGES
        with pytest.raises(openai.RateLimitError) as raised:
            await sdk.chat.completions.create(model="gpt-4.1", messages=messages, stream=True)
        assert raised.value.code == "rate_limit_exceeded"
        assert "try again in 20s" in raised.value.message
        assert raised.value.response.headers["retry-after"] == "20"


async def test_400_passes_byte_for_byte(start_router: StartRouter) -> None:
    async with (
        replaying(cassette("error_400")) as (url, _),
        start_router(openai_base_url=url) as router,
    ):
        answer = await router.client.post(CHAT, json=chat("gpt-4.1", temperature=3))
        assert answer.status_code == 400
        assert answer.content == load_cassette(cassette("error_400"))[0].answer
        assert answer.json()["error"]["param"] == "temperature"


async def test_the_credential_goes_to_its_own_origin_only(start_router: StartRouter) -> None:
    engine = SimulatedEngine()
    async with (
        replaying(cassette("chat")) as (url, upstream),
        running(engine) as engine_url,
        start_router(openai_base_url=url, upstream=engine_url, models=("simulated",)) as router,
    ):
        row = DeploymentEntry(provider="openai", upstream_name="gpt-4.1", priority=200)
        router.write(lambda c: add_model(c, "simulated", row))
        await router.catch_up()
        engine.script.add("status:code=503", "redirect:location=" + url)
        answer = await router.client.post(CHAT, json=chat("simulated"))
        assert answer.headers["x-iir-endpoint"] == "openai"
        router.router.fleet.rests.forget("engine")
        await router.client.post(CHAT, json=chat("simulated"))
        assert len(engine.requests) == 2
        assert all(seen.header("authorization") is None for seen in engine.requests)
        assert all(seen.header("authorization") == f"Bearer {KEY}" for seen in upstream.requests)


async def test_a_request_confined_to_this_machine_never_goes_there(
    start_router: StartRouter,
) -> None:
    async with (
        replaying(cassette("chat")) as (url, upstream),
        start_router(openai_base_url=url) as router,
    ):
        answer = await router.client.post(
            CHAT, json=chat("gpt-4.1"), headers={"x-iir-zone": "local"}
        )
        assert (answer.status_code, error_of(answer)["code"]) == (403, "zone_refused")
        assert upstream.requests == []


async def test_a_request_cant_say_where_it_goes(start_router: StartRouter) -> None:
    async with (
        replaying(cassette("chat")) as (url, upstream),
        start_router(openai_base_url=url) as router,
    ):
        elsewhere = {"api_base": "http://127.0.0.1:9", "base_url": "http://127.0.0.1:9"}
        headers = {"x-upstream": "http://127.0.0.1:9", "x-forwarded-host": "evil.example"}
        answer = await router.client.post(CHAT, json=chat("gpt-4.1", **elsewhere), headers=headers)
        assert answer.status_code == 200
        assert len(upstream.requests) == 1


async def test_without_a_key_the_error_says_what_to_set(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in (None, "", "   "):
        if value is None:
            monkeypatch.delenv("EXTERNAL_OPENAI_KEY")
        else:
            monkeypatch.setenv("EXTERNAL_OPENAI_KEY", value)
        async with start_router(openai_base_url="http://127.0.0.1:9") as router:
            for model in ("gpt-4.1", "o3", "text-embedding-3-small"):
                answer = await router.client.post(CHAT, json=chat(model))
                error = error_of(answer)
                assert (answer.status_code, error["code"]) == (503, "provider_not_configured")
                assert "EXTERNAL_OPENAI_KEY" in error["message"]


async def test_a_request_that_was_not_recorded(start_router: StartRouter) -> None:
    async with (
        replaying(cassette("chat")) as (url, _),
        start_router(openai_base_url=url) as router,
    ):
        answer = await router.client.post("/v1/completions", json=chat("gpt-4.1"))
        assert (answer.status_code, error_of(answer)["code"]) == (404, "upstream_error")
