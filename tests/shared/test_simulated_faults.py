"""Faults of the simulated engine, as they look on the wire."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.faults import Fault
from shared.testing.raw_client import call_raw, connected, render_request, split_answer

PATH = "/v1/chat/completions"
ASK = {"model": "simulated", "messages": [{"role": "user", "content": "one two three four"}]}
STREAM = {**ASK, "stream": True}


async def sent(fault: str, body: object = STREAM) -> tuple[bytes, bytes]:
    """Return head and body of the answer to a request with this fault."""
    async with running(SimulatedEngine()) as base_url:
        return split_answer(await call_raw(base_url, PATH, body, headers={"x-sim-fault": fault}))


def status(head: bytes) -> int:
    return int(head.split(b" ")[1])


async def test_a_fault_can_be_asked_for_in_three_ways() -> None:
    engine = SimulatedEngine()
    async with (
        running(engine) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        by_name = await client.post(PATH, json={**ASK, "model": "simulated!status:code=429"})
        by_header = await client.post(PATH, json=ASK, headers={"x-sim-fault": "status:code=418"})
        scripted = await client.post(
            "/sim/faults", json=["status:code=503", {"kind": "html_502", "times": 2}]
        )
        assert scripted.json() == [["status"], ["html_502"]]
        by_script = [(await client.post(PATH, json=ASK)).status_code for _ in range(4)]
    assert (by_name.status_code, by_header.status_code) == (429, 418)
    assert by_script == [503, 502, 502, 200]
    assert [seen.faults for seen in engine.requests[2:]] == [
        ("status",),
        ("html_502",),
        ("html_502",),
        (),
    ]
    assert [seen.status for seen in engine.requests] == [429, 418, 503, 502, 502, 200]


async def test_a_scripted_fault_can_be_for_one_path_and_for_ever() -> None:
    engine = SimulatedEngine()
    engine.script.add(Fault(kind="status", code=503, path="/health", times=0))
    async with (
        running(engine) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        for _ in range(3):
            assert (await client.get("/health")).status_code == 503
        assert (await client.post(PATH, json=ASK)).status_code == 200
        assert (await client.delete("/sim/faults")).json() == []
        assert (await client.get("/health")).status_code == 200


async def test_faults_of_one_entry_act_together() -> None:
    engine = SimulatedEngine()
    engine.script.add("crlf;split:size=3;cut:after=4")
    async with running(engine) as base_url:
        _, body = split_answer(await call_raw(base_url, PATH, STREAM))
    assert body == b'data: {"id":'


@pytest.mark.parametrize(
    "fault",
    [
        "nonsense",
        "status:code=x",
        "cut:afterwards=1",
        "cut:after",
        "status:shape=round",
        "error_event:shape=round",
        "cut:after=99",
    ],
)
async def test_a_fault_that_can_not_happen_is_refused(fault: str) -> None:
    head, body = await sent(fault)
    assert status(head) == 400
    assert b"simulated-engine: " in body


async def test_a_stream_fault_is_refused_for_a_plain_answer() -> None:
    head, body = await sent("error_event", ASK)
    assert status(head) == 400
    assert b"needs a stream" in body


@pytest.mark.parametrize("entry", [["nonsense"], {"kind": "cut", "x": 1}, None, "cut:x"])
async def test_the_script_refuses_what_is_no_fault(entry: object) -> None:
    async with (
        running(SimulatedEngine()) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        assert (await client.post("/sim/faults", json=entry)).status_code == 400
        assert (await client.get("/sim/faults")).json() == []
        assert (await client.get("/sim/other")).status_code == 404


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("persona", b'{"error":{"message":"simulated failure","type":"server_error"'),
        ("openai", b'{"error": {"message": "simulated failure"'),
        ("string", b'{"error": "simulated failure"}'),
        ("detail", b'{"detail": "simulated failure"}'),
        ("text", b"simulated failure"),
        ("html", b"<html>"),
        ("empty", b""),
    ],
)
async def test_status_has_a_body_of_every_shape(shape: str, expected: bytes) -> None:
    head, body = await sent(f"status:code=429,retry_after=7,shape={shape}")
    assert status(head) == 429
    assert b"retry-after: 7" in head
    assert body.startswith(expected)
    assert (body == b"") == (shape == "empty")


async def test_answers_that_take_the_place_of_a_stream() -> None:
    head, body = await sent("redirect:location=http://127.0.0.1:1/x")
    assert (status(head), b"location: http://127.0.0.1:1/x" in head) == (302, True)
    head, body = await sent("error_200")
    assert (status(head), "error" in json.loads(body)) == (200, True)
    head, body = await sent("json_200")
    assert json.loads(body)["object"] == "chat.completion"
    head, body = await sent("empty_200")
    assert (status(head), body) == (200, b"")
    assert (await sent("garbage"))[0].startswith(b"\x16\x03\x01")


async def test_cut_before_the_head_behind_it_and_in_the_middle() -> None:
    assert await sent("cut") == (b"", b"")
    head, body = await sent("cut:after=0")
    assert (status(head), body) == (200, b"")
    head, body = await sent("cut:after=2")
    assert body.count(b"data: ") == 2
    assert b"[DONE]" not in body


async def test_a_plain_answer_is_cut_in_the_middle_of_its_body() -> None:
    async with (
        running(SimulatedEngine()) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(PATH, json=ASK, headers={"x-sim-fault": "cut:after=1"})


async def test_a_reset_is_a_reset() -> None:
    async with running(SimulatedEngine()) as base_url:
        with pytest.raises(ConnectionResetError):
            await call_raw(base_url, PATH, STREAM, headers={"x-sim-fault": "cut:reset=1"})


async def test_a_cut_stream_is_an_error_for_the_client_and_no_abort_for_the_engine() -> None:
    engine = SimulatedEngine()
    async with (
        running(engine) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(PATH, json=STREAM, headers={"x-sim-fault": "cut:after=1"})
        await engine.journal.wait_for(lambda: engine.requests[-1].ended_s is not None)
    assert not engine.requests[-1].aborted
    assert engine.tally.finished == {"error": 1}


async def test_ends_without_done() -> None:
    _, body = await sent("no_done")
    assert b'"finish_reason":"stop"' in body
    assert b"[DONE]" not in body
    _, body = await sent("no_done:after=2")
    assert b'"finish_reason":"stop"' not in body
    assert body.count(b"data: ") == 2
    assert (await sent("no_done:after=0"))[1] == b""


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("openai", b'data: {"error": {"message": "simulated failure"'),
        ("text", b'data: {"error": "simulated failure"}'),
        ("vllm_old", b'data: {"object": "error"'),
        ("event_error", b'event: error\ndata: {"error": {'),
        ("message", b'event: error\ndata: {"message"'),
    ],
)
async def test_error_events_of_every_shape(shape: str, expected: bytes) -> None:
    _, body = await sent(f"error_event:shape={shape}")
    assert body.startswith(expected)
    assert body.endswith(b"}\n\n")
    _, body = await sent(f"error_event:shape={shape},after=2,done=1")
    assert body.index(expected) > 0
    assert body.endswith(b"}\n\ndata: [DONE]\n\n")


async def test_data_after_done_and_foreign_headers() -> None:
    _, body = await sent("after_done")
    assert body.split(b"data: [DONE]\n\n")[1].startswith(b"data: ")
    head, _ = await sent("headers")
    assert head.count(b"server: ") == 2
    assert b"set-cookie: " in head
    assert b"x-request-id: req-simulated" in head


async def test_a_huge_line_has_the_size_that_was_asked_for() -> None:
    _, body = await sent("huge_line:size=300000")
    longest = max(body.split(b"\n\n"), key=len)
    assert 200_000 < len(longest) < 330_000
    assert len(json.loads(longest.removeprefix(b"data: "))["choices"][0]["delta"]["content"]) > 0


async def test_broken_chunks_break_the_client() -> None:
    async with (
        running(SimulatedEngine()) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(PATH, json=STREAM, headers={"x-sim-fault": "bad_chunk:after=1"})


async def test_slowness() -> None:
    engine = SimulatedEngine()
    async with running(engine) as base_url:
        for fault, least_s in (
            ("slow_headers:ms=30", 0.02),
            ("slow:ms=20", 0.02),
            ("slow:ms=20,after=1", 0.02),
            ("slow_stream:ms=4", 0.02),
            ("stall:ms=20", 0.02),
            ("stall:ms=20,after=2", 0.02),
            ("hang_after_done:ms=20", 0.02),
        ):
            raw = await call_raw(base_url, PATH, STREAM, headers={"x-sim-fault": fault})
            assert b"[DONE]" in split_answer(raw)[1]
            seen = engine.requests[-1]
            assert seen.ended_s is not None
            assert seen.ended_s - seen.started_s >= least_s * 0.95


@pytest.mark.parametrize(
    ("fault", "body", "until"),
    [
        ("stall", STREAM, b""),
        ("stall", ASK, b""),
        ("stall:after=0", STREAM, b"\r\n\r\n"),
        ("stall:after=2", STREAM, b'"Simulated"'),
        ("stall:after=1", ASK, b'{"id"'),
        ("hang_after_done", STREAM, b"[DONE]"),
    ],
)
async def test_a_client_that_leaves_a_stall_is_seen_at_once(
    fault: str, body: object, until: bytes
) -> None:
    engine = SimulatedEngine()
    async with running(engine) as base_url:
        async with connected(base_url) as (reader, writer):
            writer.write(render_request("POST", PATH, body, {"x-sim-fault": fault}))
            if until:
                await asyncio.wait_for(reader.readuntil(until), 1)
            await engine.journal.wait_for(lambda: bool(engine.requests))
            assert engine.requests[0].ended_s is None
        await engine.journal.wait_for(lambda: engine.requests[0].aborted, timeout_s=0.5)
    assert engine.slots.running == 0
    assert engine.tally.finished["abort"] == 1


async def test_a_crash_inside_the_process_takes_the_server_down() -> None:
    engine = SimulatedEngine()
    async with running(engine) as base_url:
        head, body = split_answer(
            await call_raw(base_url, PATH, STREAM, headers={"x-sim-fault": "crash:after=1"})
        )
        assert (status(head), body.count(b"data: ")) == (200, 1)
        with pytest.raises(OSError, match="onnect"):
            await call_raw(base_url, "/health", method="GET")


async def test_bad_bytes_in_a_plain_answer() -> None:
    _, body = await sent("bad_json", ASK)
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    _, body = await sent("bad_utf8", ASK)
    with pytest.raises(UnicodeDecodeError):
        body.decode()


async def test_other_routes_can_fail_too() -> None:
    engine = SimulatedEngine(EngineOptions())
    engine.script.add("empty_200:path=/v1/models")
    async with (
        running(engine) as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        assert (await client.get("/v1/models")).content == b""
        assert (await client.get("/v1/models")).json()["object"] == "list"
