"""Faults of the simulated engine in Responses and Messages, as they look on the wire."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import httpx
import pytest

from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.personas import ANTHROPIC, LLAMACPP, OPENAI, VLLM, Persona
from shared.testing.raw_client import call_raw, connected, render_request, split_answer
from shared.testing.steps import Latency

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
COUNT = "/v1/messages/count_tokens"
PATHS = pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
ASK: dict[str, object] = {
    "model": "simulated",
    "input": "one two three",
    "messages": [{"role": "user", "content": "one two three"}],
    "max_tokens": 50,
}
STREAM = {**ASK, "stream": True}
ENDS = {RESPONSES: b"event: response.completed\n", MESSAGES: b"event: message_stop\n"}


async def sent(
    path: str, fault: str, body: object = STREAM, persona: Persona = VLLM
) -> tuple[bytes, list[bytes]]:
    """Return the head and the events of the answer to a request with this fault."""
    engine = SimulatedEngine(EngineOptions(persona=persona), wall=lambda: 1.8e9)
    async with running(engine) as base_url:
        headers = {"x-sim-fault": fault, "anthropic-version": "2023-06-01"}
        head, found = split_answer(await call_raw(base_url, path, body, headers=headers))
    return head, [event for event in found.split(b"\n\n") if event]


def data_of(event: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(event.partition(b"data: ")[2])
    return found


@PATHS
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("persona", [VLLM, LLAMACPP], ids=["vllm", "llamacpp"])
async def test_an_error_event_has_the_shape_of_its_api(
    path: str, after: int, persona: Persona
) -> None:
    head, events = await sent(path, f"error_event:after={after},code=529", persona=persona)
    assert head.startswith(b"HTTP/1.1 200")
    assert len(events) == after + 1
    name, data = events[-1].partition(b"\n")[0], data_of(events[-1])
    if path == RESPONSES and persona is LLAMACPP:
        assert set(data) == {"error"}
        return
    assert name == b"event: error"
    if persona is LLAMACPP:
        assert (data["code"], data["type"]) == (529, "server_error")
    elif path == RESPONSES:
        assert (data["type"], data["sequence_number"]) == ("error", after)
    else:
        error = {"type": "overloaded_error", "message": "simulated failure"}
        assert data == {"type": "error", "error": error}


async def test_a_response_can_fail_in_its_own_event() -> None:
    _, events = await sent(RESPONSES, "error_event:after=4,shape=failed", persona=OPENAI)
    response = data_of(events[-1])["response"]
    assert isinstance(response, dict)
    assert response["id"] == data_of(events[0])["response"]["id"]  # type: ignore[index]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")


@PATHS
async def test_an_answer_may_lack_its_end_or_break_off(path: str) -> None:
    _, whole = await sent(path, "")
    assert whole[-1].startswith(ENDS[path].strip())
    assert (await sent(path, "no_done"))[1] == whole[:-1]
    assert (await sent(path, "no_done:after=2"))[1] == whole[:2]
    assert (await sent(path, "cut:after=2"))[1][:2] == whole[:2]
    late = (await sent(path, "after_done"))[1]
    assert late[:-1] == whole
    assert b"after the end" in late[-1]


@PATHS
async def test_a_done_may_follow_the_end(path: str) -> None:
    persona = replace(VLLM, ends_with_done=True)
    _, events = await sent(path, "", persona=persona)
    assert events[-2].startswith(ENDS[path].strip())
    assert events[-1] == b"data: [DONE]"
    assert (await sent(path, "no_done", persona=persona))[1] == events[:-2]


@PATHS
@pytest.mark.parametrize("fault", ["bad_json", "bad_utf8", "huge_line:size=65536"])
async def test_broken_events_have_the_name_of_good_ones(path: str, fault: str) -> None:
    _, events = await sent(path, fault)
    names = [event.partition(b"\n")[0] for event in events]
    assert names[1] in {b"event: response.output_text.delta", b"event: content_block_delta"}


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES, COUNT])
@pytest.mark.parametrize("persona", [VLLM, ANTHROPIC, OPENAI], ids=lambda p: p.name)
async def test_refusals_have_the_shape_of_their_persona(path: str, persona: Persona) -> None:
    if path not in persona.paths:
        return
    head, body = await sent(path, "status:code=429,retry_after=2", persona=persona)
    found = json.loads(body[0])
    assert head.startswith(b"HTTP/1.1 429")
    assert (b"retry-after: 2" in head, found["error"]["message"]) == (True, "simulated failure")
    assert (found.get("type") == "error") == (path != RESPONSES)


@PATHS
@pytest.mark.parametrize("body", [ASK, STREAM])
async def test_json_may_take_the_place_of_a_stream(path: str, body: object) -> None:
    _, found = await sent(path, "json_200", body)
    assert json.loads(found[0])["id"] in {"resp_sim", "msg_sim"}
    _, error = await sent(path, "error_200", body)
    assert "error" in json.loads(error[0])


async def test_a_scripted_fault_hits_any_inference_route() -> None:
    engine = SimulatedEngine()
    engine.script.add("status:code=503", "status:code=503", "status:code=503")
    async with (
        running(engine) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        codes = [
            (await client.post(path, json=ASK)).status_code for path in (RESPONSES, MESSAGES, COUNT)
        ]
    assert codes == [503] * 3


@PATHS
async def test_a_client_that_leaves_is_noticed_and_latency_counts(path: str) -> None:
    engine = SimulatedEngine(EngineOptions(latency=Latency(itl_s=30.0)))
    async with running(engine) as base_url:
        async with connected(base_url) as (reader, writer):
            writer.write(render_request("POST", path, STREAM))
            await asyncio.wait_for(reader.readuntil(b"Simulated"), 5)
        await engine.journal.wait_for(lambda: engine.requests[-1].aborted)
    assert engine.tally.finished["abort"] == 1
    assert engine.slots.running == 0
