"""What the lean transport does beyond the contract: its pool, its limits, compressed answers."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import pytest

from shared.http import lean_transport
from shared.http.errors import (
    StaleConnection,
    UpstreamFailed,
    UpstreamInterrupted,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from shared.http.transport import Timeouts
from shared.testing.wire import Exchange
from tests.shared.transports import (
    LONG,
    OK,
    answer_to,
    body_of,
    failure_of,
    get,
    hang,
    kept,
    lean,
    raw,
    say_hello,
    stream_ab,
    upstream_of,
)

# the pool


@pytest.mark.parametrize("reset", [True, False])
async def test_a_request_that_crosses_the_close_of_its_connection_is_told_apart(
    reset: bool,
) -> None:
    async def close_on_the_second(exchange: Exchange) -> None:
        if len(upstream.exchanges) == 2:
            exchange.close(reset=reset)
        else:
            await say_hello(exchange)

    async with upstream_of(close_on_the_second) as upstream, lean() as transport:
        assert await answer_to(transport, upstream.ask(body=b"first")) == b"hello"
        with pytest.raises(StaleConnection):
            await answer_to(transport, upstream.ask(body=b"second"))
        assert await answer_to(transport, upstream.ask(body=b"third")) == b"hello"
        seen = [(one.request.connection, one.request.body) for one in upstream.exchanges]
        assert seen == [(1, b"first"), (1, b"second"), (2, b"third")]


async def test_a_new_connection_that_closes_is_not_stale() -> None:
    async def close(exchange: Exchange) -> None:
        exchange.close()

    async with upstream_of(close) as upstream, lean() as transport:
        with pytest.raises(UpstreamInterrupted) as caught:
            await answer_to(transport, upstream.ask())
        assert type(caught.value) is UpstreamInterrupted


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200 OK\r\nx-half: ", b""])
async def test_a_request_that_may_have_been_served_is_not_stale(
    part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_off(exchange: Exchange) -> None:
        if len(upstream.exchanges) == 1:
            await say_hello(exchange)
            return
        if part:
            await exchange.send_raw(part)
        exchange.close()

    if not part:  # nothing came, but it took too long for a crossing
        monkeypatch.setattr(lean_transport, "_RACE_S", 0.0)
    async with upstream_of(break_off) as upstream, lean() as transport:
        await answer_to(transport, upstream.ask())
        with pytest.raises(UpstreamInterrupted) as caught:
            await answer_to(transport, upstream.ask())
        assert type(caught.value) is UpstreamInterrupted


async def test_the_last_used_connection_is_used_first_and_old_ones_are_closed() -> None:
    async with upstream_of(say_hello) as upstream, lean() as transport:
        async with transport.open(upstream.ask()), transport.open(upstream.ask()) as second:
            await body_of(second)
        (idle,) = transport._idle.values()
        assert await answer_to(transport, upstream.ask()) == b"hello"
        used = idle[-1]
        for connection in idle:
            connection.idle_since -= 10  # seconds ago
        assert await answer_to(transport, upstream.ask()) == b"hello"
        assert used not in idle
        assert upstream.exchanges[-1].request.connection == 3


async def test_idle_connections_are_swept() -> None:
    async with upstream_of(say_hello) as upstream, lean() as transport:
        assert await answer_to(transport, upstream.ask()) == b"hello"
        transport._sweep()
        assert kept(transport) == 1
        for connection in transport._connections:
            connection.idle_since -= 10
        transport._sweep()
        assert (kept(transport), transport._sweeper) == (0, None)
        await upstream.asked()
        assert not transport._connections


async def test_an_idle_connection_that_ends_leaves_the_pool_at_once() -> None:
    async def answer_and_leave(exchange: Exchange) -> None:
        await say_hello(exchange)
        await asyncio.sleep(0.01)
        exchange.close()

    async with upstream_of(answer_and_leave) as upstream, lean() as transport:
        assert await answer_to(transport, upstream.ask()) == b"hello"
        assert kept(transport) == 1
        await upstream.asked()
        assert kept(transport) == 0
        assert not transport._connections


async def test_an_answer_that_is_here_whole_keeps_its_connection_unread() -> None:
    async with upstream_of(stream_ab) as upstream, lean() as transport:
        async with transport.open(upstream.ask()):
            await upstream.asked()
        async with transport.open(upstream.ask()) as response:
            assert await body_of(response) == b"ab"
        assert {one.request.connection for one in upstream.exchanges} == {1}


async def test_an_answer_can_not_be_read_after_its_context() -> None:
    async with upstream_of(stream_ab) as upstream, lean() as transport:
        async with transport.open(upstream.ask()) as response:
            pass
        with pytest.raises(RuntimeError):
            await response.read()


async def test_a_connection_made_while_closing_is_closed() -> None:
    async with upstream_of(say_hello) as upstream, lean() as transport:
        task = asyncio.create_task(answer_to(transport, upstream.ask()))
        await asyncio.sleep(0)
        await transport.aclose()
        with pytest.raises(UpstreamUnreachable):
            await task
        assert upstream.exchanges == []


async def test_cancelled_while_connecting() -> None:
    async with lean(allow_address=lambda _address: True) as transport:

        async def wait(*_args: object, **_options: object) -> None:
            await hang()

        transport._dialer._connect = wait  # type: ignore[method-assign]
        task = asyncio.create_task(answer_to(transport, get("http://127.0.0.1:1/")))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# the limits


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"x: y\r\n" * 257 + b"content-length: 0\r\n\r\n",
        OK + b"x: " + b"y" * 66_000 + b"\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + OK + b"content-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 007 Agent\r\ncontent-length: 0\r\n\r\n",
        OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"transfer-encoding: gzip\r\n\r\nx",
        OK + b"content-encoding: br\r\ncontent-length: 2\r\n\r\nx",
    ],
    ids=lambda answer: repr(answer[:40]),
)
async def test_heads_that_are_refused(answer: bytes) -> None:
    assert isinstance(await failure_of(answer, close=False), UpstreamFailed)


async def test_a_head_at_the_limits_with_a_large_body_behind_it() -> None:
    head = OK + b"x: y\r\n" * 254 + b"y: " + b"z" * 60_000 + b"\r\ncontent-length: 200000\r\n\r\n"

    async with upstream_of(raw(head + b"b" * 200_000)) as upstream, lean() as transport:
        assert await answer_to(transport, upstream.ask()) == b"b" * 200_000


async def test_what_came_is_delivered_before_the_error() -> None:
    broken = OK + b"transfer-encoding: chunked\r\n\r\n4\r\npart\r\nzz\r\n"
    async with (
        upstream_of(raw(broken)) as upstream,
        lean() as transport,
        transport.open(upstream.ask()) as response,
    ):
        assert await response.read() == b"part"
        for _ in range(2):
            with pytest.raises(UpstreamInterrupted):
                await response.read()


async def test_the_limit_of_the_whole_exchange_covers_connecting() -> None:
    async with lean() as transport:

        async def wait(*_args: object, **_options: object) -> None:
            await hang()

        transport._dialer._connect = wait  # type: ignore[method-assign]
        timeouts = Timeouts(connect_s=5, total_s=0.05)
        with pytest.raises(UpstreamTimeout):
            await answer_to(transport, get("http://127.0.0.1:1/", timeouts))
        with pytest.raises(UpstreamUnreachable):
            await answer_to(transport, get("http://127.0.0.1:1/", Timeouts(connect_s=0.05)))


async def test_one_timer_serves_all_limits_of_a_connection() -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None)
        for _ in range(6):  # longer in all than a pause may be
            await exchange.send_body(b"x")
            await asyncio.sleep(0.04)
        if len(upstream.exchanges) == 2:
            await hang()
        await exchange.end_body()

    async with upstream_of(answer) as upstream, lean() as transport:
        timeouts = Timeouts(connect_s=5, first_byte_s=5, idle_s=0.1)
        assert await answer_to(transport, upstream.ask(timeouts=LONG)) == b"xxxxxx"
        with pytest.raises(UpstreamTimeout):
            await answer_to(transport, upstream.ask(timeouts=timeouts))
        assert await answer_to(transport, upstream.ask(timeouts=timeouts)) == b"xxxxxx"


# compressed answers


async def packed_answer(coding: bytes, body: bytes) -> bytes:
    async def answer(exchange: Exchange) -> None:
        head = b"content-encoding: %b\r\ncontent-length: %d\r\n\r\n" % (coding, len(body))
        await exchange.send_raw(OK + head)
        for start in range(0, len(body), 1000):
            await exchange.send_raw(body[start : start + 1000])

    async with upstream_of(answer) as upstream, lean() as transport:
        return await answer_to(transport, upstream.ask())


async def test_compressed_answers() -> None:
    plain = bytes(range(256)) * 4000
    assert await packed_answer(b"gzip", gzip.compress(plain)) == plain
    assert await packed_answer(b"Deflate", zlib.compress(plain)) == plain
    assert await packed_answer(b"identity", plain) == plain
    assert await packed_answer(b"gzip", b"") == b""
    assert len(await packed_answer(b"gzip", gzip.compress(bytes(30_000_000)))) == 30_000_000


@pytest.mark.parametrize(
    "body",
    [gzip.compress(b"plain" * 100)[:-9], b"this is not packed"],
    ids=["cut", "plain"],  # the first has the time of its making in it
)
async def test_broken_compressed_answers(body: bytes) -> None:
    with pytest.raises(UpstreamInterrupted):
        await packed_answer(b"gzip", body)


async def test_a_compressed_answer_that_breaks_off() -> None:
    head = b"content-encoding: gzip\r\ncontent-length: 500\r\n\r\n"
    failure = await failure_of(OK + head + gzip.compress(b"plain" * 100)[:-9])
    assert isinstance(failure, UpstreamInterrupted)
