"""The contract of `Transport`, third part: what fails, stalls, is cut or cancelled."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import pytest

from shared.http.errors import (
    ApiError,
    UpstreamFailed,
    UpstreamInterrupted,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from shared.http.transport import OutboundRequest, Timeouts, Transport
from shared.testing.wire import Exchange
from tests.shared.transports import (
    LONG,
    SHORT,
    body_of,
    bytes_server,
    hang,
    pieces_of,
    raw,
    say_hello,
    upstream_of,
)


async def test_a_refused_connection(transport: Transport) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        with pytest.raises(UpstreamUnreachable):
            async with transport.open(OutboundRequest(method="GET", url=url)):
                pass


async def test_a_name_that_does_not_resolve(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown(*_args: object, **_kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown, raising=False)
    with pytest.raises(UpstreamUnreachable) as failed:
        async with transport.open(OutboundRequest(method="GET", url="http://upstream.invalid/")):
            pass
    assert "upstream.invalid" not in failed.value.message


async def test_a_connection_that_is_never_taken(transport: Transport) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:  # fill the queue of those who wait to be taken
            one.setblocking(False)
            one.connect_ex(address)
        request = OutboundRequest(
            method="GET", url=f"http://127.0.0.1:{address[1]}/", timeouts=SHORT
        )
        with anyio.fail_after(20), pytest.raises((UpstreamUnreachable, UpstreamTimeout)):
            async with transport.open(request):
                pass
        for one in waiting:
            one.close()


async def test_no_first_byte_in_time(transport: Transport) -> None:
    timeouts = Timeouts(connect_s=20, first_byte_s=0.15, idle_s=20)
    async with upstream_of(hang) as upstream:
        with anyio.fail_after(20), pytest.raises(UpstreamTimeout):
            async with transport.open(upstream.ask(timeouts=timeouts)):
                pass
        await upstream.client_left()


@pytest.mark.parametrize("sent", [1, 3])
async def test_a_pause_in_the_answer_has_its_own_limit(transport: Transport, sent: int) -> None:
    async def stall(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None)
        for _ in range(sent):
            await exchange.send_body(b"part")
            await asyncio.sleep(0.01)
        await hang()

    timeouts = Timeouts(connect_s=5, first_byte_s=60, idle_s=0.1)
    async with upstream_of(stall) as upstream:
        with anyio.fail_after(20), pytest.raises(UpstreamTimeout, match="stopped"):
            async with transport.open(upstream.ask(timeouts=timeouts)) as response:
                await body_of(response)
        await upstream.client_left()


async def test_a_long_wait_for_the_first_part_is_no_pause(transport: Transport) -> None:
    async def think(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None)
        await asyncio.sleep(0.2)
        await exchange.send_body(b"thought")
        await exchange.end_body()

    timeouts = Timeouts(connect_s=5, first_byte_s=5, idle_s=0.05)
    async with (
        upstream_of(think) as upstream,
        transport.open(upstream.ask(timeouts=timeouts)) as response,
    ):
        assert await body_of(response) == b"thought"


@pytest.mark.parametrize("reset", [True, False])
async def test_a_cut_before_the_first_byte(transport: Transport, reset: bool) -> None:
    async def cut(exchange: Exchange) -> None:
        exchange.close(reset=reset)

    async with upstream_of(cut) as upstream:
        with pytest.raises(UpstreamInterrupted):
            async with transport.open(upstream.ask()):
                pass
        assert len(upstream.exchanges) == 1  # a POST is not sent twice behind our back


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("length", [None, 100])
async def test_a_cut_in_the_body(transport: Transport, reset: bool, length: int | None) -> None:
    async def cut(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=length)
        await exchange.send_body(b"part")
        await asyncio.sleep(0.02)
        exchange.close(reset=reset)

    async with upstream_of(cut) as upstream, transport.open(upstream.ask()) as response:
        with pytest.raises(UpstreamInterrupted):
            await body_of(response)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03\x01 this is no HTTP\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"220 mail.example ESMTP\r\n",
    ],
    ids=lambda answer: repr(answer[:24]),
)
async def test_garbage_is_an_error_of_ours(transport: Transport, answer: bytes) -> None:
    async with upstream_of(raw(answer, close=True)) as upstream:
        with pytest.raises((UpstreamFailed, UpstreamInterrupted)) as failed:
            async with transport.open(upstream.ask()) as response:
                await body_of(response)
        assert failed.value.status == 502


@pytest.mark.parametrize("read_after_s", [0, 0.03])
async def test_broken_chunks_in_the_body(transport: Transport, read_after_s: float) -> None:
    async def babble(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None)
        await exchange.send_body(b"part")
        await exchange.send_raw(b"zz\r\nno chunk size\r\n")
        await asyncio.sleep(0.02)
        exchange.close()

    async with upstream_of(babble) as upstream:
        with anyio.fail_after(1), pytest.raises(ApiError) as failed:
            async with transport.open(upstream.ask()) as response:
                await asyncio.sleep(read_after_s)
                await body_of(response)
        assert isinstance(failed.value, (UpstreamFailed, UpstreamInterrupted))


async def test_an_url_that_is_none(transport: Transport) -> None:
    for url in ("nonsense", "http://", "http://[::1", "ftp://127.0.0.1/"):
        with pytest.raises(ApiError) as failed:
            async with transport.open(OutboundRequest(method="GET", url=url)):
                pass
        assert failed.value.status == 502


async def wait_before_the_head(_exchange: Exchange) -> None:
    await hang()


async def wait_in_the_head(exchange: Exchange) -> None:
    await exchange.send_raw(b"HTTP/1.1 200 OK\r\nx-half: ")
    await hang()


async def wait_before_the_body(exchange: Exchange) -> None:
    await exchange.send_head(200, [], length=None)
    await hang()


async def wait_in_the_body(exchange: Exchange) -> None:
    await exchange.send_head(200, [], length=None)
    await exchange.send_body(b"part")
    await hang()


@pytest.mark.parametrize(
    "answer", [wait_before_the_head, wait_in_the_head, wait_before_the_body, wait_in_the_body]
)
async def test_a_cancelled_caller_closes_the_connection(
    transport: Transport, answer: Callable[[Exchange], Awaitable[None]]
) -> None:
    async with upstream_of(answer) as upstream:

        async def call() -> None:
            async with transport.open(upstream.ask()) as response:
                await body_of(response)

        task = asyncio.create_task(call())
        await upstream.asked()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await upstream.client_left()


async def test_a_cancelled_finish_closes_the_connection(transport: Transport) -> None:
    async with upstream_of(wait_in_the_body) as upstream:

        async def call() -> None:
            async with transport.open(upstream.ask()) as response:
                async for _chunk in pieces_of(response):
                    break
                await response.finish()

        task = asyncio.create_task(call())
        await upstream.asked()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await upstream.client_left()


async def test_finish_never_raises(transport: Transport) -> None:
    async def cut_at_the_end(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None)
        await exchange.send_body(b"data: [DONE]\n\n")
        await asyncio.sleep(0.01)
        exchange.close(reset=True)

    async with upstream_of(cut_at_the_end) as upstream, transport.open(upstream.ask()) as response:
        async for _chunk in pieces_of(response):
            break
        await response.finish()


async def test_a_body_that_nobody_takes_has_a_limit(transport: Transport) -> None:
    async def never_read(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await hang()

    timeouts = Timeouts(connect_s=5, first_byte_s=0.1, idle_s=5, total_s=0.3)
    async with bytes_server(never_read, limit=2**10) as url:
        request = OutboundRequest(method="POST", url=url, body=b"x" * 30_000_000, timeouts=timeouts)
        with anyio.fail_after(3), pytest.raises(UpstreamTimeout):
            async with transport.open(request):
                pass


async def test_a_cancelled_upload_closes_the_connection(transport: Transport) -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def read_late(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        begun.set()
        await asyncio.sleep(0.1)
        with suppress(ConnectionError):
            while await reader.read(2**20):
                pass
        left.set()

    async with bytes_server(read_late) as url:
        request = OutboundRequest(method="POST", url=url, body=b"x" * 30_000_000, timeouts=LONG)

        async def call() -> None:
            async with transport.open(request):
                pass

        task = asyncio.create_task(call())
        await begun.wait()
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with anyio.fail_after(20):
            await left.wait()


async def test_the_whole_exchange_has_a_limit(transport: Transport) -> None:
    async def never_end(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None)
        while True:
            await exchange.send_body(b"more")
            await asyncio.sleep(0.01)

    timeouts = Timeouts(connect_s=5, first_byte_s=5, idle_s=5, total_s=0.15)
    async with upstream_of(never_end) as upstream:
        with anyio.fail_after(20), pytest.raises(UpstreamTimeout):
            async with transport.open(upstream.ask(timeouts=timeouts)) as response:
                await body_of(response)
        await upstream.client_left()


async def test_closing_cuts_what_is_running(transport: Transport) -> None:
    async def never_end(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None)
        await exchange.send_body(b"part")
        await hang()

    async with upstream_of(never_end) as upstream:
        async with transport.open(upstream.ask()) as response:
            assert await response.read() == b"part"
            await transport.aclose()
            with anyio.fail_after(20), pytest.raises(ApiError):
                await body_of(response)
        await upstream.client_left()


async def test_a_server_that_speaks_no_tls(transport: Transport) -> None:
    async with upstream_of(say_hello) as upstream:
        url = upstream.url.replace("http://", "https://")
        with anyio.fail_after(5), pytest.raises(UpstreamUnreachable):
            async with transport.open(OutboundRequest(method="GET", url=url, timeouts=LONG)):
                pass


async def test_tls_that_never_comes_about_has_a_limit(transport: Transport) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        timeouts = Timeouts(connect_s=0.2, first_byte_s=5, idle_s=5)
        with anyio.fail_after(3), pytest.raises(UpstreamUnreachable):
            async with transport.open(OutboundRequest(method="GET", url=url, timeouts=timeouts)):
                pass
