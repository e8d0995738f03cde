"""Inference through the agent: what goes in and comes out, byte by byte."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from shared.http.guard import _SANE_ID
from shared.testing.engine import EngineOptions
from shared.testing.personas import LLAMACPP
from tests.local_agent.harness import (
    CHAT,
    ENGINE_FAILURES,
    MESSAGES,
    RunningAgent,
    StartAgent,
    external,
)
from tests.loopback_sdks import openai_at
from tests.shared.pumps import watch_pumps

ODD = (
    b'{"model":"%s","messages":[{"role":"user","content":"caf\\u00e9 \xc3\xa9","name":null}],'
    b'"prompt":"hello small world","input":["a","b"],"top_k":1.50e1,"guided":{"a":[1, 2 ,{}]},'
    b'"big":123456789012345678901234567890,"chat_template_kwargs":{"x":-0.0}%s}'
)
JSON = {"content-type": "application/json", "x-request-id": "same-for-both"}
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]


async def both(agent: RunningAgent, path: str, more: bytes = b"") -> tuple[bytes, bytes, Any]:
    """Return the engine's own answer, the agent's, and the agent's headers."""
    url = agent.worker_url + path
    direct = await agent.client.post(url, content=ODD % (b"engine/tiny", more), headers=JSON)
    through = await agent.client.post(path, content=ODD % (b"default", more), headers=JSON)
    assert direct.status_code == through.status_code == 200
    return direct.content, through.content, through.headers


@pytest.mark.parametrize("path", PATHS)
async def test_request_and_answer_pass_byte_for_byte(start_agent: StartAgent, path: str) -> None:
    async with start_agent() as agent:
        direct, through, headers = await both(agent, path)
        assert through == direct
        assert headers["content-type"] == "application/json"
        assert headers["x-request-id"] == "same-for-both"
        sent = agent.sent
        assert sent.raw == ODD % (b"engine/tiny", b"")
        assert sent.path == path


@pytest.mark.parametrize("path", PATHS[:2])
async def test_a_stream_passes_byte_for_byte(start_agent: StartAgent, path: str) -> None:
    more = b',"stream":true,"stream_options":{"include_usage":true}'
    async with start_agent() as agent:
        direct, through, headers = await both(agent, path, more)
        assert through == direct
        assert through.endswith(b"data: [DONE]\n\n")
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["cache-control"] == "no-cache"
        assert "content-length" not in headers
        assert agent.sent.raw == ODD % (b"engine/tiny", more)


async def test_what_a_client_says_of_itself_stays_here(start_agent: StartAgent) -> None:
    own = {"authorization": "Bearer sk-secret", "cookie": "a=b", "x-stainless-os": "Linux"}
    async with start_agent() as agent:
        await agent.client.post(CHAT, json={"model": "tiny", "messages": MESSAGES}, headers=own)
        sent = agent.sent
        names = {name for name, _ in sent.headers}
        assert not names & {"authorization", "cookie", "x-stainless-os", "user-agent"}
        made = sent.header("x-request-id")
        assert made is not None
        assert _SANE_ID.fullmatch(made.encode())


async def test_headers_of_an_engine_do_not_reach_the_client(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        agent.engine.script.add("headers")
        answer = await agent.client.post(CHAT, json={"model": "tiny", "messages": MESSAGES})
        assert answer.status_code == 200
        assert not {"set-cookie", "server", "x-powered-by", "alt-svc"} & set(answer.headers)
        assert answer.headers.get_list("x-request-id") != ["req-simulated"]
        assert len(answer.headers.get_list("x-request-id")) == 1


async def test_a_model_goes_by_its_id_and_its_aliases(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        for name, known in [("tiny", True), ("default", True), ("Tiny", False)]:
            answer = await agent.client.post(CHAT, json={"model": name, "messages": MESSAGES})
            assert answer.status_code == (200 if known else 404)
            if known:
                assert answer.json()["model"] == "engine/tiny"


async def test_an_engine_that_takes_any_name_never_sees_an_unknown_one(
    start_agent: StartAgent,
) -> None:
    """llama.cpp answers 200 whatever the model is called."""
    async with start_agent(engine=EngineOptions(models=("tiny",), persona=LLAMACPP)) as agent:
        answer = await agent.client.post(CHAT, json={"model": "gpt-99", "messages": MESSAGES})
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": "This agent does not know the model 'gpt-99'. GET /v1/models lists what it has.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        assert [seen.path for seen in agent.engine.requests if "chat" in seen.path] == []


async def test_of_two_models_in_one_body_the_checked_one_is_sent(start_agent: StartAgent) -> None:
    body = b'{"model":"nobody","messages":[{"role":"user","content":"x"}],"model":"tiny"}'
    async with start_agent() as agent:
        answer = await agent.client.post(CHAT, content=body, headers=JSON)
        assert answer.status_code == 200
        assert agent.sent.raw.count(b'"model"') == 1


async def test_each_model_reaches_its_own_engine(start_agent: StartAgent) -> None:
    async with start_agent() as first, start_agent_beside(start_agent, first) as agent:
        answer = await agent.client.post(CHAT, json={"model": "a/b:c", "messages": MESSAGES})
        assert answer.status_code == 200
        assert first.engine.requests[-1].body is not None
        assert json.loads(first.engine.requests[-1].raw)["model"] == "engine/tiny"


def start_agent_beside(start_agent: StartAgent, first: RunningAgent) -> Any:
    """Start an agent that knows another agent's engine by another name."""
    entry = external(first.worker_url, model="a/b:c", upstream_name="engine/tiny")
    return start_agent(entry, external(f"{first.worker_url}/v1/", model="other"))


async def test_the_sdk_chats_streams_completes_and_embeds(start_agent: StartAgent) -> None:
    messages: Any = MESSAGES
    async with (
        start_agent() as agent,
        openai_at(agent.base_url) as sdk,
    ):
        raw = await sdk.chat.completions.with_raw_response.create(model="tiny", messages=messages)
        whole = raw.parse().choices[0].message.content
        stream = await sdk.chat.completions.create(model="tiny", messages=messages, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert whole
        assert "".join(parts) == whole
        assert raw.headers["x-request-id"]
        completed = await sdk.completions.create(model="default", prompt="hello")
        assert completed.choices[0].text
        embedded = await sdk.embeddings.create(model="tiny", input=["a", "b"])
        assert len(embedded.data) == 2
        assert {model.id async for model in sdk.models.list()} == {"tiny"}
        with pytest.raises(openai.NotFoundError) as missing:
            await sdk.chat.completions.create(model="nobody", messages=messages)
        assert missing.value.code == "model_not_found"
        assert missing.value.request_id


FAILURES = [*ENGINE_FAILURES, ("status:code=400,shape=persona", 400, "400")]


async def test_an_engine_that_fails_gives_a_clear_error(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        for fault, status, code in FAILURES:
            agent.engine.script.add(fault, fault)  # a connection cut at once is taken for stale
            answer = await agent.client.post(CHAT, json={"model": "tiny", "messages": MESSAGES})
            agent.engine.script.clear()
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, code), fault
            assert "10.1.2.3" not in answer.text
            assert answer.headers["x-request-id"]
            if status == 503 or "retry_after" in fault:
                assert int(answer.headers["retry-after"]) >= 1
            await agent.until_idle()


@pytest.mark.parametrize(
    ("fault", "status"), [("cut", 503), ("no_done:after=2", 200), ("cut:after=2", 200)]
)
async def test_a_stream_that_breaks_says_so(
    start_agent: StartAgent, fault: str, status: int
) -> None:
    async with start_agent() as agent:
        agent.engine.script.add(fault, fault)  # a connection cut at once is taken for stale
        body = {"model": "tiny", "messages": MESSAGES, "stream": True}
        answer = await agent.client.post(CHAT, json=body)
        assert answer.status_code == status
        if status == 200:
            last = answer.text.strip().split("\n\n")[-1]
            error = json.loads(last.removeprefix("data: "))["error"]
            assert error["code"] == "upstream_interrupted"
            assert set(error) == {"message", "type", "param", "code"}
            assert "[DONE]" not in answer.text
        await agent.until_idle()


async def test_a_kept_connection_that_was_closed_costs_an_attempt_not_the_answer(
    start_agent: StartAgent,
) -> None:
    async with start_agent() as agent:
        for stream in (False, True):
            body = {"model": "tiny", "messages": MESSAGES, "stream": stream}
            plain = await agent.client.post(CHAT, json=body)
            agent.engine.script.add("cut:reset=true")
            seen = len(agent.engine.requests)
            answer = await agent.client.post(CHAT, json=body)
            assert (plain.status_code, answer.status_code) == (200, 200)
            assert "x-iir-attempts" not in plain.headers
            assert answer.headers["x-iir-attempts"] == "2"
            assert len(agent.engine.requests) == seen + 2


@pytest.mark.slow
async def test_a_long_answer_that_breaks_off_is_not_taken_for_whole(
    start_agent: StartAgent,
) -> None:
    """Over 8 MiB it is passed on as it comes, so that nothing but the connection can tell."""
    messages = [{"role": "user", "content": "x" * (20 * 2**20)}]
    async with start_agent() as agent:
        body = {"model": "tiny", "messages": messages}
        assert len((await agent.client.post(CHAT, json=body)).content) > 20 * 2**20
        agent.engine.script.add("cut:after=1")
        with pytest.raises(httpx.RemoteProtocolError):
            await agent.client.post(CHAT, json=body)
        await agent.until_idle()


async def test_streams_go_through_the_pump(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a stream costs rests on this; `/infer` makes other events of those that it gets."""
    pumped = watch_pumps(monkeypatch)
    async with start_agent() as agent:
        body = {"model": "tiny", "messages": MESSAGES, "stream": True}
        assert (await agent.client.post(CHAT, json=body)).content.endswith(b"[DONE]\n\n")
        body = {"prompt": "hello", "stream": True}
        assert (await agent.client.post("/infer", json=body)).content.endswith(b"[DONE]\n\n")
    assert pumped == [True, False]
