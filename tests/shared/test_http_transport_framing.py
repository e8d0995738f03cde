"""The contract of `Transport`, second part: how answers are framed and tied to connections."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from shared.http.aiohttp_transport import AiohttpTransport
from shared.http.errors import (
    UpstreamFailed,
    UpstreamInterrupted,
)
from shared.http.headers import find_header
from shared.http.transport import OutboundRequest, Timeouts, Transport
from shared.testing.wire import Exchange, WireServer
from tests.shared.transports import (
    LONG,
    OK,
    Upstream,
    body_of,
    bytes_server,
    hang,
    raw,
    say_hello,
    stream_ab,
    upstream_of,
)

TO_ARRIVE_S = 0.1
"""After this what the other end has sent is here, on a loaded machine too."""


async def ask(transport: Transport, upstream: Upstream, method: str = "POST") -> tuple[int, bytes]:
    request = OutboundRequest(method=method, url=f"{upstream.url}/x", timeouts=LONG)
    async with transport.open(request) as response:
        return response.status, await body_of(response)


def connections(upstream: Upstream) -> list[int]:
    return [exchange.request.connection for exchange in upstream.exchanges]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n",
        OK + b"content-length: 0\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_an_answer_without_a_body_keeps_its_connection(
    transport: Transport, answer: bytes
) -> None:
    async with upstream_of(raw(answer)) as upstream:
        for _ in range(2):
            with anyio.fail_after(20):
                _status, body = await ask(transport, upstream)
            assert body == b""
        assert connections(upstream) == [1, 1]


async def test_an_answer_to_head_has_no_body(transport: Transport) -> None:
    async with upstream_of(raw(OK + b"content-length: 10\r\n\r\n")) as upstream:
        for _ in range(2):
            with anyio.fail_after(20):
                assert await ask(transport, upstream, "HEAD") == (200, b"")


async def test_interim_answers_are_passed_over(transport: Transport) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    answer = raw(interim, b"HTTP/1.1 102 Processing\r\n\r\n", OK + b"content-length: 2\r\n\r\nok")
    async with upstream_of(answer) as upstream:
        request = OutboundRequest(method="POST", url=upstream.url, timeouts=LONG)
        for _ in range(2):
            async with transport.open(request) as response:
                assert response.status == 200
                assert list(response.headers) == [(b"content-length", b"2")]
                assert await body_of(response) == b"ok"
        assert connections(upstream) == [1, 1]


async def test_trailers_and_chunk_extensions_are_passed_over(transport: Transport) -> None:
    answer = OK + b"transfer-encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nx-trailer: 1\r\n\r\n"
    async with upstream_of(raw(answer)) as upstream:
        for _ in range(2):
            async with transport.open(upstream.ask()) as response:
                assert await body_of(response) == b"ok"
                assert find_header(response.headers, b"x-trailer") is None
        assert connections(upstream) == [1, 1]


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n\r\n", OK + b"\r\n"])
async def test_a_body_without_framing_ends_with_its_connection(
    transport: Transport, head: bytes
) -> None:
    async with upstream_of(raw(head, b"to the ", b"end", close=True)) as upstream:
        for _ in range(2):
            assert await ask(transport, upstream) == (200, b"to the end")
        assert connections(upstream) == [1, 2]


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        OK + b"connection: close\r\ncontent-length: 2\r\n\r\nok",
        OK + b"Connection: Close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
async def test_a_connection_that_is_to_be_closed_is_not_used_again(
    transport: Transport, head: bytes
) -> None:
    async with upstream_of(raw(head)) as upstream:  # it says so, and leaves it to the client
        for _ in range(2):
            assert await ask(transport, upstream) == (200, b"ok")
        assert connections(upstream) == [1, 2]


async def test_an_old_server_that_keeps_its_connection(transport: Transport) -> None:
    answer = b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok"
    async with upstream_of(raw(answer)) as upstream:
        for _ in range(2):
            assert await ask(transport, upstream) == (200, b"ok")
        assert connections(upstream) == [1, 1]


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 2\r\n",
        b"content-length: 2\r\ncontent-length: 5\r\n",
        b"content-length: 2, 5\r\n",
        b"content-length: -2\r\n",
        b"content-length: +2\r\n",
        b"content-length: 0x2\r\n",
        b"content-length: 99999999999999999999999\r\n",
        b"x: folded\r\n over lines\r\ncontent-length: 2\r\n",
        b"content-length : 2\r\n",
    ],
)
async def test_framing_that_can_be_read_in_two_ways_is_refused(
    transport: Transport, framing: bytes
) -> None:
    async with upstream_of(raw(OK + framing + b"\r\n2\r\nok\r\n0\r\n\r\n")) as upstream:
        for _ in range(2):
            with pytest.raises((UpstreamFailed, UpstreamInterrupted)):
                await ask(transport, upstream)
        assert connections(upstream) == [1, 2]


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"junk"])
@pytest.mark.parametrize("later", [True, False])
async def test_what_follows_an_answer_is_nobodys_answer(
    transport: Transport, extra: bytes, later: bool
) -> None:
    if isinstance(transport, AiohttpTransport):
        pytest.skip(
            "aiohttp (3.14) may take what nobody asked for as the answer to the next request"
        )
    answer = OK + b"content-length: 4\r\n\r\ngood"
    pieces = (answer, extra) if later else (answer + extra,)
    async with upstream_of(raw(*pieces)) as upstream:
        for _ in range(3):
            assert await ask(transport, upstream) == (200, b"good")
            await asyncio.sleep(TO_ARRIVE_S)
        assert connections(upstream) == [1, 2, 3]


async def test_a_connection_that_closed_while_idle_is_not_used_again(transport: Transport) -> None:
    async def answer_and_leave(exchange: Exchange) -> None:
        await say_hello(exchange)
        exchange.close()

    async with upstream_of(answer_and_leave) as upstream:
        for _ in range(3):
            assert await ask(transport, upstream) == (200, b"hello")
            await asyncio.sleep(TO_ARRIVE_S)
        assert connections(upstream) == [1, 2, 3]


async def test_parallel_requests_have_connections_of_their_own(transport: Transport) -> None:
    go_on = asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        await go_on.wait()
        await say_hello(exchange)

    async with upstream_of(wait) as upstream:
        tasks = [asyncio.create_task(ask(transport, upstream)) for _ in range(5)]
        while len(upstream.exchanges) < 5:
            await asyncio.sleep(0.005)
        go_on.set()
        assert await asyncio.gather(*tasks) == [(200, b"hello")] * 5
        assert sorted(connections(upstream)) == [1, 2, 3, 4, 5]
        await asyncio.gather(*(ask(transport, upstream) for _ in range(5)))
        assert max(connections(upstream)) == 5


@pytest.mark.parametrize("size", [500_000, 20_000_000])
async def test_an_answer_that_comes_before_the_body_was_sent(
    transport: Transport, size: int
) -> None:
    answer = b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig"

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        await hang()  # takes no more of the body

    async with bytes_server(refuse) as url:
        request = OutboundRequest(method="POST", url=url, body=b"x" * size, timeouts=LONG)
        with anyio.fail_after(3):
            async with transport.open(request) as response:
                assert response.status == 413
                assert await body_of(response) == b"big"


async def test_a_slow_reader_holds_the_upstream_back(transport: Transport) -> None:
    size, sent = 200, 0
    piece = b"x" * 262_144

    async def flood(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send_head(200, [], length=size * len(piece))
        for sent in range(size):  # noqa: B007 - looked at while it counts
            await exchange.send_body(piece)

    timeouts = Timeouts(connect_s=5, first_byte_s=5, idle_s=0.1)
    async with upstream_of(flood) as upstream:
        async with transport.open(upstream.ask(timeouts=timeouts)) as response:
            first = await response.read()
            await asyncio.sleep(0.3)  # longer than the upstream may pause
            assert sent < size / 2
            with anyio.fail_after(10):
                assert len(first + await body_of(response)) == size * len(piece)
        await ask(transport, upstream, "HEAD")


@pytest.mark.parametrize(
    "header",
    [
        ("x-a", "1\r\nx-b: 2"),
        ("x-a", "1\nx-b: 2"),
        ("x-a", "1\rx-b: 2"),
        ("x-a", "1\r\n\r\nGET /evil HTTP/1.1"),
        ("x-a\r\nx-b", "1"),
    ],
)
async def test_a_header_can_not_bring_another_one(
    transport: Transport, header: tuple[str, str]
) -> None:
    async with upstream_of(say_hello) as upstream:
        request = OutboundRequest(method="POST", url=upstream.url, headers=[header], body=b"{}")
        with pytest.raises(UpstreamFailed):
            async with transport.open(request):
                pass
        assert upstream.exchanges == []
        assert await ask(transport, upstream) == (200, b"hello")


async def test_the_host_header_and_the_target(transport: Transport) -> None:
    async with upstream_of(say_hello) as upstream:
        url = f"{upstream.url}/v1/a-b?q=1&r=2#part"
        async with transport.open(OutboundRequest(method="GET", url=url)) as response:
            assert await body_of(response) == b"hello"
        request = upstream.exchanges[0].request
        assert request.target == "/v1/a-b?q=1&r=2"
        assert request.header("host") == upstream.url.removeprefix("http://")


async def test_a_name_is_looked_up(transport: Transport) -> None:
    async with upstream_of(say_hello) as upstream:
        url = upstream.url.replace("127.0.0.1", "localhost")
        async with transport.open(OutboundRequest(method="GET", url=url)) as response:
            assert await body_of(response) == b"hello"
        assert upstream.exchanges[0].request.header("host") == url.removeprefix("http://")


async def test_an_ipv6_address(transport: Transport) -> None:
    server = WireServer(say_hello)
    try:
        url = await server.start("::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with transport.open(OutboundRequest(method="GET", url=url)) as response:
        assert await body_of(response) == b"hello"
    await server.close()


async def test_post_without_a_body_says_so(transport: Transport) -> None:
    async with upstream_of(say_hello) as upstream:
        await ask(transport, upstream, "POST")
        await ask(transport, upstream, "GET")
        sent = [exchange.request.header("content-length") for exchange in upstream.exchanges]
        assert sent[0] == "0"
        assert sent[1] in {None, "0"}


async def test_reading_on_after_the_end_gives_nothing(transport: Transport) -> None:
    async with upstream_of(stream_ab) as upstream, transport.open(upstream.ask()) as response:
        assert await body_of(response) == b"ab"
        assert await response.read() == b""
        await response.finish()
