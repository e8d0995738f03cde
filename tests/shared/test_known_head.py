"""Heads that came before: what counts as the same, and that nothing else does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.http.known_head import KnownHead, without_length
from shared.http.lean_connection import LeanConnection
from shared.http.lean_kept import KeptConnection
from shared.http.transport import Timeouts

REQUEST = b"POST /v1/x HTTP/1.1\r\nhost: a\r\nContent-Length: %d\r\nx-b: c\r\n\r\n%b"


def message(body: bytes) -> bytes:
    return REQUEST % (len(body), body)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_same_head_with_another_body_is_known(first: bytes, then: bytes) -> None:
    head = KnownHead.of(message(first))
    assert head is not None
    assert head.body_of(message(then)) == then


@given(st.binary(min_size=1, max_size=40), st.data())
def test_a_head_that_differs_in_any_byte_is_not(body: bytes, data: st.DataObject) -> None:
    head = KnownHead.of(message(body))
    assert head is not None
    changed = bytearray(message(body))
    place = data.draw(st.integers(0, len(changed) - len(body) - 1))
    changed[place] ^= data.draw(st.integers(1, 255))
    assert head.body_of(bytes(changed)) is None


@pytest.mark.parametrize(
    "other",
    [
        message(b"abcd") + b"x",  # more than its length says
        message(b"abcd")[:-1],  # not here whole
        message(b"abcd") + message(b"abcd"),  # another one behind it
        REQUEST.replace(b"%d", b"%b") % (b"+4", b"abcd"),
        REQUEST.replace(b"%d", b"%b") % (b" 4", b"abcd"),
        REQUEST.replace(b"%d", b"%b") % (b"4 ", b"abcd"),
        REQUEST.replace(b"%d", b"%b") % ("٤".encode(), b"abcd"),
        REQUEST.replace(b"%d", b"%b") % (b"", b""),
        REQUEST.replace(b"%d", b"%b") % (b"4\r\ntransfer-encoding: chunked", b"abcd"),
        b"",
    ],
)
def test_what_may_mean_something_else_is_not(other: bytes) -> None:
    head = KnownHead.of(message(b"abcd"))
    assert head is not None
    assert head.body_of(other) is None


@pytest.mark.parametrize(
    "first",
    [
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nx",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\nxy",
        b"POST / HTTP/1.1\r\n\r\ncontent-length: 0\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"rubbish",
    ],
)
def test_a_head_whose_length_is_not_plain_is_not_kept(first: bytes) -> None:
    assert KnownHead.of(first) is None


class _Wire(asyncio.Transport):
    """Takes what is written, and can be closed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


HEADS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b",
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n%b",
    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b",
    b"HTTP/1.1 500 No\r\ncontent-length: %d\r\n\r\n%b",
    b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b",
    b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b",
    b"HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n%b",
)
_EXTRA = (b"", b"", b"", b"x", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
answers = st.tuples(
    st.sampled_from(HEADS),
    st.binary(max_size=12),
    st.sampled_from(_EXTRA),
    st.lists(st.integers(1, 90), max_size=2),
)


@given(st.lists(answers, min_size=1, max_size=8), st.booleans())
def test_a_connection_that_knows_heads_reads_what_one_reads_that_does_not(
    series: list[tuple[bytes, bytes, bytes, list[int]]], is_head_only: bool
) -> None:
    loop = asyncio.new_event_loop()
    try:
        assert _read(KeptConnection, loop, series, is_head_only) == _read(
            LeanConnection, loop, series, is_head_only
        )
    finally:
        loop.close()


def _read(
    kind: type[LeanConnection],
    loop: asyncio.AbstractEventLoop,
    series: list[tuple[bytes, bytes, bytes, list[int]]],
    is_head_only: bool,
) -> list[Any]:
    """Return what a connection makes of a series of answers, as long as it can be kept."""
    connection, wire = kind(loop, lambda _: None), _Wire()
    connection.connection_made(wire)
    seen: list[Any] = []
    for head, body, extra, cuts in series:
        connection.begin(Timeouts(), 1e9, is_head_only=is_head_only and not seen)
        data = head % (len(body), body) + extra
        for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
            if data[start:end] and not connection.is_complete:
                connection.data_received(data[start:end])
        text = b"".join(connection.pieces)
        error = connection.error and (type(connection.error), connection.error.message)
        facts = connection.has_head, connection.is_complete, connection.is_reusable
        seen.append(
            (
                connection.status,
                without_length(connection.headers),
                connection.encoding,
                text,
                facts,
                error,
            )
        )
        if not connection.is_complete or not connection.is_reusable or connection.error:
            break
        connection.rest(0.0)
    if connection._timer is not None:
        connection._timer.cancel()
    return [*seen, wire.is_aborted]
