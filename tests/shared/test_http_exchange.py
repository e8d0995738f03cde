"""One call to an upstream: what is known before anything is committed, and what leaves after."""

from __future__ import annotations

import asyncio
import json

import pytest

from shared.http.errors import (
    UpstreamAnswer,
    UpstreamFailed,
    UpstreamInterrupted,
)
from shared.http.exchange import HELD_BYTES, exchange
from shared.http.streams import ChatRules, MessagesRules, ResponsesRules, StreamRules
from tests.shared.exchanges import (
    CHUNK,
    DONE,
    ERRORS,
    MESSAGE_EVENTS,
    REQUEST,
    RESPONSE_EVENTS,
    USAGE,
    FakeTransport,
    failure_of,
    parts_of,
)


async def test_events_pass_byte_for_byte_up_to_done() -> None:
    late = b'data: {"choices":[]}\n\n'
    transport = FakeTransport(CHUNK, CHUNK + USAGE, DONE + late, late)
    assert await parts_of(transport) == ([CHUNK, CHUNK + USAGE, DONE], None)
    assert transport.reads == 3
    assert transport.finished == transport.closed == 1


@pytest.mark.parametrize("size", [1, 2, 7, 50])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_any_cut_of_a_stream_gives_the_same_bytes(size: int, end: bytes) -> None:
    odd = b": note\n\nid: 4\ndata: {}x\n\n".replace(b"{}x", CHUNK[6:-2])
    data = (CHUNK + odd + USAGE + DONE).replace(b"\n", end)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found, error = await parts_of(FakeTransport(*pieces))
    assert error is None
    # the LF of the very last CRLF may come too late: the answer ends at its CR
    assert b"".join(found) in {data, data.removesuffix(b"\n") if end == b"\r\n" else data}


BREAKS_SDKS = [
    b"retry: 3000\n\n",
    b"id: 1\n\n",
    b"event: ping\n\n",
    b"id: 4\nretry: 1\n\n",
    b"data:\n\n",
    b"data: \n\n",
    b"data: {}\n\n",
    b"event: ping\ndata: {}\n\n",
]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("event", BREAKS_SDKS)
async def test_what_breaks_sdks_is_dropped(event: bytes, size: int) -> None:
    data = event + CHUNK + event + event + USAGE + DONE
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found, error = await parts_of(FakeTransport(*pieces))
    assert (b"".join(found), error) == (CHUNK + USAGE + DONE, None)


@pytest.mark.parametrize(
    "event",
    [
        b"data: {\n\n",
        b"data: nonsense\n\n",
        b"data: [1]\n\n",
        b'data: {"a":"\xff"}\n\n',
        b"data: <p>\n\n",
    ],
)
async def test_what_is_no_json_ends_the_stream_with_an_error(event: bytes) -> None:
    found, error = await parts_of(FakeTransport(CHUNK, event, CHUNK, DONE))
    assert found == [CHUNK]
    assert isinstance(error, UpstreamFailed)


async def test_usage_is_noted_and_hidden_from_who_did_not_ask() -> None:
    hiding = ChatRules(hides_usage=True)
    for rules, seen in ((None, CHUNK + USAGE + DONE), (hiding, CHUNK + DONE)):
        async with exchange(FakeTransport(CHUNK, USAGE + DONE), REQUEST, rules) as reply:
            assert b"".join([part async for part in reply.chunks]) == seen
            assert json.loads(reply.usage()[-1]) == {"prompt_tokens": 1, "completion_tokens": 2}


@pytest.mark.parametrize(
    ("rules", "events"), [(ResponsesRules(), RESPONSE_EVENTS), (MessagesRules(), MESSAGE_EVENTS)]
)
async def test_other_apis_end_in_their_own_way(
    rules: StreamRules, events: tuple[bytes, ...]
) -> None:
    transport = FakeTransport(*events, DONE, CHUNK)
    async with exchange(transport, REQUEST, rules) as reply:
        assert [part async for part in reply.chunks] == list(events)
    async with exchange(FakeTransport(*events[:-1]), REQUEST, rules) as reply:
        with pytest.raises(UpstreamInterrupted):
            _ = [part async for part in reply.chunks]
    with pytest.raises(UpstreamAnswer, match="broke"):
        async with exchange(FakeTransport(ERRORS["openai"]), REQUEST, rules):
            raise AssertionError("committed")


def test_anthropic_sdks_get_their_own_error_event() -> None:
    event = MessagesRules().error_event(UpstreamInterrupted("gone"))
    assert event.startswith(b"event: error\n")
    assert json.loads(event.split(b"data: ")[1])["error"]["message"] == "gone"


async def test_the_first_part_is_there_before_the_second_arrives() -> None:
    transport = FakeTransport(b": wait\n\n", b"event: x\n\n", CHUNK, CHUNK, DONE)
    async with exchange(transport, REQUEST) as reply:
        assert (reply.status, reply.is_stream, reply.body) == (200, True, None)
        assert transport.reads == 3
        assert await reply.chunks.__anext__() == b": wait\n\n" + CHUNK
        assert await reply.chunks.__anext__() == CHUNK


async def test_a_stream_may_be_nothing_but_its_end() -> None:
    assert await parts_of(FakeTransport(DONE)) == ([DONE], None)


async def test_an_end_without_its_blank_line_is_one() -> None:
    for last in (b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n"):
        assert await parts_of(FakeTransport(CHUNK, last)) == ([CHUNK, DONE], None)


async def test_done_within_a_text_is_no_end() -> None:
    text = b'data: {"choices":[{"delta":{"content":"data: [DONE]"}}]}\n\n'
    assert await parts_of(FakeTransport(text, CHUNK, DONE)) == ([text, CHUNK, DONE], None)


async def test_a_byte_order_mark_is_dropped() -> None:
    found, _ = await parts_of(FakeTransport(b"\xef\xbb", b"\xbf" + CHUNK, DONE))
    assert found == [CHUNK, DONE]


@pytest.mark.parametrize("rest", [b"", b'data: {"choices":'])
async def test_an_end_without_done_is_an_error(rest: bytes) -> None:
    found, error = await parts_of(FakeTransport(CHUNK, rest))
    assert found == [CHUNK]
    assert isinstance(error, UpstreamInterrupted)


@pytest.mark.parametrize("rest", [(), (b": only comments\n\n",), (b"data: {",)])
async def test_a_stream_that_ends_before_its_first_event_fails(rest: tuple[bytes, ...]) -> None:
    assert isinstance(await failure_of(FakeTransport(*rest)), UpstreamInterrupted)


async def test_a_stream_without_an_event_for_too_long_fails() -> None:
    comments = [b": " + b"x" * (HELD_BYTES // 4) + b"\n\n"] * 9
    transport = FakeTransport(*comments)
    assert isinstance(await failure_of(transport), UpstreamFailed)
    assert transport.reads < 6


@pytest.mark.slow
@pytest.mark.parametrize("event", [b"retry: 1\n\n", b"data: {}\n\n", b"data:\n\n", b"\n"])
async def test_what_is_dropped_before_the_first_event_has_a_limit_too(event: bytes) -> None:
    transport = FakeTransport(*[event * (2**17 // len(event))] * 99)
    assert isinstance(await failure_of(transport), UpstreamFailed)
    assert transport.reads < 12


async def test_others_have_their_turn_while_a_piece_of_many_events_is_judged() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    found, error = await parts_of(FakeTransport(CHUNK + b"retry: 1\n\n" * 100_000 + DONE))
    counting.cancel()
    assert (b"".join(found), error) == (CHUNK + DONE, None)
    assert turns > 50


async def test_an_error_in_the_first_chunk_behind_the_first_event_comes_after_it() -> None:
    found, error = await parts_of(FakeTransport(CHUNK + ERRORS["openai"]))
    assert found == [CHUNK]
    assert isinstance(error, UpstreamAnswer)


@pytest.mark.parametrize("first", [b"data: {\n\n", b"data: [1]\n\n", b"data: <html>\n\n"])
async def test_a_stream_that_starts_with_no_json_object_fails(first: bytes) -> None:
    failed = await failure_of(FakeTransport(first, CHUNK, DONE))
    assert isinstance(failed, UpstreamFailed)
    assert failed.is_retryable


@pytest.mark.parametrize("event", ERRORS.values(), ids=ERRORS.keys())
async def test_an_error_as_first_event_fails_before_anything_is_committed(event: bytes) -> None:
    failed = await failure_of(FakeTransport(b": wait\n\n" + event, DONE))
    assert isinstance(failed, UpstreamAnswer)
    assert failed.message == "broke"
    assert (failed.status, failed.is_retryable) == (502, True)


@pytest.mark.parametrize("event", ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("together", [True, False])
async def test_an_error_in_a_stream_comes_once_and_ends_it(event: bytes, together: bool) -> None:
    late = (CHUNK, DONE)
    chunks = (CHUNK, CHUNK + event + CHUNK, *late) if together else (CHUNK, CHUNK, event, *late)
    found, error = await parts_of(FakeTransport(*chunks))
    assert found == [CHUNK, CHUNK]
    assert isinstance(error, UpstreamAnswer)
    assert error.message == "broke"


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":null,"choices":[]}\n\n',
        b'data: {"error":{},"choices":[]}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\"error\\": {}"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"an error event: error"}}]}\n\n',
        b'data: {"choices":[{"finish_reason":"error"}]}\n\n',
        b": error\n\n",
    ],
)
async def test_what_only_looks_like_an_error_passes(event: bytes) -> None:
    assert await parts_of(FakeTransport(CHUNK, event, DONE)) == ([CHUNK, event, DONE], None)


async def test_a_failure_between_events_passes_up() -> None:
    lost = UpstreamInterrupted("lost")
    assert await parts_of(FakeTransport(CHUNK, b"data: {", error=lost)) == ([CHUNK], lost)


async def test_an_event_without_end_is_bounded() -> None:
    block = b"x" * 1024 * 1024
    found, error = await parts_of(FakeTransport(CHUNK, b"data: ", *[block] * 20))
    assert found == [CHUNK]
    assert isinstance(error, UpstreamFailed)
