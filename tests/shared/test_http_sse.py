"""The SSE framer: the same events for any cut of the bytes, and not a byte changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.http.errors import UpstreamFailed
from shared.http.sse import SseFramer, event_data

LINES = st.sampled_from(
    [
        b"data: {}",
        b'data: {"choices":[]}',
        b"data:tight",
        b"data",
        b"data:",
        b"data:  two spaces",
        b"data: [DONE]",
        b": comment",
        b"event: ping",
        b"id: 1",
        b"retry: 3000",
        b"datax: no",
        b"data: \xc3\xa4\xff",
        b"",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=24).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(marks)]


def framed(chunks: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    framer = SseFramer()
    events = [event for chunk in chunks for event in framer.feed(chunk)]
    return events, framer.pending


def expected_data(data: bytes) -> list[bytes]:
    """Read a stream as the specification says, line by line; an unfinished event is dropped."""
    found: list[bytes] = []
    lines: list[bytes] = []
    for line in re.split(rb"\r\n|\n|\r", data)[:-1]:
        name, _, value = line.partition(b":")
        if line and name == b"data":
            lines.append(value.removeprefix(b" "))
        if not line and lines:
            found.append(b"\n".join(lines))
            lines = []
    return found


@given(STREAMS, st.lists(st.integers(min_value=0), max_size=12))
def test_any_cut_gives_the_same_bytes_and_the_same_data(data: bytes, places: list[int]) -> None:
    events, pending = framed(cut(data, places))
    assert b"".join(events) + pending == data
    assert [found for found in map(event_data, events) if found is not None] == expected_data(data)


@given(STREAMS)
def test_single_bytes_give_the_same_data_as_one_chunk(data: bytes) -> None:
    events, pending = framed([data[at : at + 1] for at in range(len(data))])
    assert b"".join(events) + pending == data
    assert [found for found in map(event_data, events) if found is not None] == expected_data(data)


@given(st.binary(max_size=60), st.lists(st.integers(min_value=0), max_size=6))
def test_any_bytes_come_out_as_they_went_in(data: bytes, places: list[int]) -> None:
    events, pending = framed(cut(data, places))
    assert b"".join(events) + pending == data


def test_a_single_byte_is_no_event() -> None:
    framer = SseFramer()
    assert framer.feed(b"d") == []
    assert framer.feed(b"") == []
    assert framer.pending == b"d"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_leaves_with_its_blank_line(end: bytes) -> None:
    first, second = b"data: 1" + end + end, b": note" + end + b"data: 2" + end + end
    framer = SseFramer()
    assert framer.feed(first) == [first]
    assert framer.feed(second + first) == [second, first]
    assert framer.feed(b"data: 3" + end) == []
    assert framer.feed(end) == [b"data: 3" + end + end]


def test_a_crlf_cut_in_two_neither_delays_nor_doubles_an_event() -> None:
    framer = SseFramer()
    events = framer.feed(b"data: 1\r\n\r") + framer.feed(b"\ndata: 2\r\n\r\n")
    assert [event_data(event) for event in events] == [b"1", b"2"]
    assert b"".join(events) == b"data: 1\r\n\r\ndata: 2\r\n\r\n"


def test_an_event_over_the_limit_is_refused_before_it_ends() -> None:
    framer = SseFramer(max_event_bytes=100)
    assert framer.feed(b"data: " + b"x" * 94) == []
    with pytest.raises(UpstreamFailed, match="too long"):
        framer.feed(b"y")


def test_many_events_together_may_be_longer_than_the_limit_of_one() -> None:
    event = b"data: " + b"x" * 50 + b"\n\n"
    assert SseFramer(max_event_bytes=100).feed(event * 10 + b"data") == [event] * 10


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data: {}\r\n\r\n", b"{}"),
        (b"data: {}\r\r", b"{}"),
        (b"data: a\rdata: b\n\n", b"a\nb"),
        (b"data: {\ndata: }\n\n", b"{\n}"),
        (b"event: error\ndata: 1\n\n", b"1"),
        (b": note\n\n", None),
        (b"event: ping\n\n", None),
        (b"id: 1\n\n", None),
        (b"database: no\n\n", None),
        (b"data\n\n", b""),
        (b"data:\n\n", b""),
        (b"data: [DONE]", b"[DONE]"),
        (b"data: [DONE]\n", b"[DONE]"),
        (b"data: a\nx", b"a"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"", None),
    ],
)
def test_the_data_of_an_event(event: bytes, data: bytes | None) -> None:
    assert event_data(event) == data
