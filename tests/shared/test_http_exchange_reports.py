"""Streams that end with their API's own word for a failure: it passes, and is not taken for success."""

from __future__ import annotations

import json

import pytest

from shared.http.errors import ApiError, UpstreamAnswer, UpstreamInterrupted
from shared.http.exchange import exchange
from shared.http.responses_errors import responses_stream_error
from shared.http.streams import ChatRules, MessagesRules, ResponsesRules, StreamRules
from tests.shared.exchanges import (
    CHUNK,
    DONE,
    MESSAGE_EVENTS,
    REQUEST,
    RESPONSE_EVENTS,
    FakeTransport,
)

CREATED, DELTA, _ = RESPONSE_EVENTS


def failed(code: str = "server_error") -> bytes:
    response = {"status": "failed", "error": {"code": code, "message": "broke"}}
    data = {"type": "response.failed", "sequence_number": 2, "response": response}
    return b"event: response.failed\ndata: " + json.dumps(data).encode() + b"\n\n"


def error(code: str | None = "server_error") -> bytes:
    data = {"type": "error", "code": code, "message": "broke", "param": None, "sequence_number": 2}
    return b"event: error\ndata: " + json.dumps(data).encode() + b"\n\n"


@pytest.mark.parametrize("event", [failed(), error()], ids=["response.failed", "error"])
async def test_an_own_failure_passes_as_the_last_event_and_is_reported(event: bytes) -> None:
    transport = FakeTransport(CREATED, DELTA, event + DONE, CHUNK)
    async with exchange(transport, REQUEST, ResponsesRules()) as reply:
        assert reply.reported() is None
        assert [part async for part in reply.chunks] == [CREATED, DELTA, event]
        reported = reply.reported()
        assert isinstance(reported, UpstreamAnswer)
        assert (reported.message, reported.code, reported.status) == ("broke", "server_error", 500)


@pytest.mark.parametrize("event", [failed(), error()], ids=["response.failed", "error"])
async def test_an_own_failure_as_first_event_commits_nothing(event: bytes) -> None:
    transport = FakeTransport(b": wait\n\n", event)
    with pytest.raises(UpstreamAnswer, match="broke") as caught:
        async with exchange(transport, REQUEST, ResponsesRules()):
            raise AssertionError("committed")
    assert caught.value.is_retryable
    assert transport.closed == 1


@pytest.mark.parametrize(
    ("rules", "events"),
    [(ResponsesRules(), RESPONSE_EVENTS[:2]), (MessagesRules(), MESSAGE_EVENTS[:2])],
)
async def test_done_is_no_end_where_the_api_has_its_own(
    rules: StreamRules, events: tuple[bytes, ...]
) -> None:
    found = []
    async with exchange(FakeTransport(*events, DONE), REQUEST, rules) as reply:
        with pytest.raises(UpstreamInterrupted):
            async for part in reply.chunks:
                found.append(part)
    assert found == list(events)
    with pytest.raises(UpstreamInterrupted):
        async with exchange(FakeTransport(DONE), REQUEST, rules):
            raise AssertionError("committed")


async def test_a_good_end_reports_nothing() -> None:
    for rules, events in ((ChatRules(), (CHUNK, DONE)), (ResponsesRules(), RESPONSE_EVENTS)):
        async with exchange(FakeTransport(*events), REQUEST, rules) as reply:
            assert [part async for part in reply.chunks] == list(events)
            assert reply.reported() is None


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (failed("rate_limit_exceeded"), 429),
        (failed("vector_store_timeout"), 504),
        (failed("invalid_prompt"), 400),
        (failed("image_too_large"), 400),
        (failed("nobody_knows"), 502),
        (error("rate_limit_exceeded"), 429),
        (error("429"), 429),
        (error(None), 502),
        (b'data: {"type":"error","error":{"code":"rate_limit_exceeded","message":"broke"}}', 429),
        (b'data: {"object":"error","message":"broke","code":503}', 503),
        (b'data: {"error":{"message":"broke","type":"t"}}', 502),
        (b'data: {"error":"broke"}', 502),
    ],
)
def test_the_status_of_an_error_in_a_stream_of_responses(event: bytes, status: int) -> None:
    found: ApiError = responses_stream_error(event.partition(b"data: ")[2])
    assert (found.message, found.status) == ("broke", status)
    assert found.is_retryable == (status != 400)
    shown = json.loads(found.body())["error"]
    assert shown.keys() >= {"message", "type", "param", "code"}
    assert shown["type"] == ("invalid_request_error" if 400 <= status < 500 else shown["type"])


@pytest.mark.parametrize("data", [b"{", b"[1]", b'{"response":{"error":{"code":7}}}', b"[" * 9999])
def test_an_unreadable_one_is_the_upstreams_failure(data: bytes) -> None:
    assert responses_stream_error(data).status == 502
