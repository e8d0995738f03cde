"""`POST /infer`: a prompt in, a text out."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.local_agent.harness import RunningAgent, StartAgent

JSON = {"content-type": "application/json"}


async def infer(agent: RunningAgent, **body: object) -> httpx.Response:
    return await agent.client.post("/infer", json=body)


def events(answer: httpx.Response) -> list[Any]:
    parts = answer.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    texts = [part.removeprefix("data: ") for part in parts]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


async def test_a_prompt_gives_a_text(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        answer = await infer(agent, prompt="hello")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        assert int(answer.headers["content-length"]) == len(answer.content)
        body = answer.json()
        assert set(body) == {"model", "text", "finish_reason", "usage"}
        assert body["model"] == "tiny"
        assert body["text"].endswith("hello")
        assert body["finish_reason"] == "stop"
        assert body["usage"]["completion_tokens"] > 0
        assert json.loads(agent.sent.raw) == {
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 512,
            "temperature": 0.7,
            "stream": False,
            "model": "engine/tiny",
        }


async def test_a_stream_ends_with_the_reason_and_the_usage(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        whole = (await infer(agent, prompt="héllo wörld", model="tiny")).json()
        answer = await infer(agent, prompt="héllo wörld", model="tiny", stream=True)
        assert answer.headers["content-type"].startswith("text/event-stream")
        *texts, last, done = events(answer)
        assert done == "[DONE]"
        assert all(set(event) == {"text"} for event in texts)
        assert "".join(event["text"] for event in texts) == whole["text"]
        assert len(texts) > 1
        expected = {"text": "", "finish_reason": whole["finish_reason"], "usage": whole["usage"]}
        assert last == expected


async def test_limits_and_temperature_reach_the_engine(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        answer = await infer(agent, prompt="a b c d e f", max_tokens=2, temperature=0)
        assert answer.json()["finish_reason"] == "length"
        sent = json.loads(agent.sent.raw)
        assert (sent["max_tokens"], sent["temperature"]) == (2, 0)


BAD_BODIES: list[tuple[bytes, str, str | None]] = [
    (b"", "invalid_json", None),
    (b"not json", "invalid_json", None),
    (b'{"prompt":"a"', "invalid_json", None),
    (b'{"prompt":"\xff"}', "invalid_json", None),
    (b'{"prompt":"\\ud800"}', "invalid_json", None),
    (b'{"prompt":"a","temperature":NaN}', "invalid_json", None),
    (b"[" * 100_000, "invalid_request", None),
    (b"[1]", "invalid_request", None),
    (b"{}", "invalid_request", "prompt"),
    (b'{"prompt":1}', "invalid_request", "prompt"),
    (b'{"prompt":null}', "invalid_request", "prompt"),
    (b'{"prompt":"a","temperature":1e999}', "invalid_request", "temperature"),
    (b'{"prompt":"a","stream":"yes"}', "invalid_request", "stream"),
    (b'{"prompt":"a","max_tokens":0}', "invalid_request", "max_tokens"),
    (b'{"prompt":"a","max_tokens":1.5}', "invalid_request", "max_tokens"),
    (b'{"prompt":"a","max_token":5}', "invalid_request", "max_token"),
    (b'{"prompt":"a","messages":[]}', "invalid_request", "messages"),
    (b'{"prompt":"a","model":""}', "invalid_request", "model"),
    (b'{"prompt":"a","model":"%s"}' % (b"m" * 257), "invalid_request", "model"),
    (b'{"prompt":"a","%s":1}' % (b"m" * 100_000), "invalid_request", None),
]


async def test_a_body_that_does_not_fit_is_explained(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        for body, code, param in BAD_BODIES:
            answer = await agent.client.post("/infer", content=body, headers=JSON)
            error = answer.json()["error"]
            found = (answer.status_code, error["code"], error["param"], error["type"])
            assert found == (400, code, param, "invalid_request_error"), body[:80]
            assert len(error["message"]) < 300
            assert answer.headers["x-request-id"]
            assert answer.headers["x-iir-error-origin"] == "client"
        assert [seen for seen in agent.engine.requests if seen.method == "POST"] == []


async def test_an_unknown_model_is_not_found(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        answer = await infer(agent, prompt="a", model="nobody")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_an_error_of_the_engine_comes_in_the_envelope(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        agent.engine.script.add("status:code=400,shape=openai", "html_502", "bad_json", "error_200")
        found = [await infer(agent, prompt="a", stream=stream) for stream in (False, True)]
        found += [await infer(agent, prompt="a") for _ in range(2)]
        statuses = [answer.status_code for answer in found]
        assert statuses == [400, 502, 502, 502]
        assert all(set(a.json()["error"]) == {"message", "type", "param", "code"} for a in found)


@pytest.mark.parametrize("fault", ["cut:after=3", "no_done:after=3", "bad_json:after=3"])
async def test_a_stream_that_breaks_ends_in_an_error_event(
    start_agent: StartAgent, fault: str
) -> None:
    async with start_agent() as agent:
        agent.engine.script.add(fault)
        answer = await infer(agent, prompt="hello small world", stream=True)
        assert answer.status_code == 200
        *texts, last = events(answer)
        assert texts
        assert all("text" in event for event in texts)
        assert last["error"]["code"] in {"upstream_interrupted", "upstream_failed"}
        await agent.until_idle()


async def test_bytes_that_are_no_text_end_a_stream_in_an_error_event(
    start_agent: StartAgent,
) -> None:
    async with start_agent() as agent:
        agent.engine.script.add("bad_utf8:after=3")
        *_, last = events(await infer(agent, prompt="hello small world", stream=True))
        assert last["error"]["code"] == "upstream_failed"


async def test_the_usual_oddities_of_a_stream_change_nothing(start_agent: StartAgent) -> None:
    kinds = ["split:size=3", "crlf", "merged", "sse_comment", "sse_ping", "no_space", "multi_line"]
    async with start_agent() as agent:
        plain = events(await infer(agent, prompt="hello small world", stream=True))
        text = "".join(event["text"] for event in plain[:-1])
        for kind in kinds:
            agent.engine.script.add(kind)
            odd = events(await infer(agent, prompt="hello small world", stream=True))
            assert "".join(event["text"] for event in odd[:-1]) == text, kind
            assert odd[-2:] == plain[-2:], kind
