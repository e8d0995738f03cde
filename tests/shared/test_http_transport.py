"""The contract of `Transport`, for each that there is. Another one joins in `TRANSPORTS`."""

from __future__ import annotations

import asyncio
import gzip

import anyio
import pytest

from shared.http.headers import find_header
from shared.http.transport import OutboundRequest, Transport
from shared.testing.wire import Exchange
from tests.shared.transports import (
    body_of,
    hang,
    pieces_of,
    say_hello,
    stream_ab,
    upstream_of,
)


async def test_a_request_goes_out_as_given_and_the_answer_comes_back(transport: Transport) -> None:
    async with upstream_of(say_hello) as upstream:
        async with transport.open(upstream.ask(body=b'{"a":1}')) as response:
            assert response.status == 200
            assert find_header(response.headers, b"x-twice") == b"1"
            assert await body_of(response) == b"hello"
        request = upstream.exchanges[0].request
        assert (request.method, request.target, request.body) == ("POST", "/v1/x", b'{"a":1}')
        sent = dict(request.headers)
        assert sent["x-own"] == "Value"
        assert set(sent) == {"host", "content-type", "content-length", "x-own", "accept-encoding"}
        assert sent["accept-encoding"] == "identity"


async def test_a_request_without_a_body(transport: Transport) -> None:
    async with upstream_of(say_hello) as upstream:
        request = OutboundRequest(method="GET", url=f"{upstream.url}/v1/models")
        async with transport.open(request) as response:
            assert await body_of(response) == b"hello"
        assert upstream.exchanges[0].request.method == "GET"
        assert upstream.exchanges[0].request.body == b""


async def test_a_connection_is_used_again_after_a_whole_answer(transport: Transport) -> None:
    async with upstream_of(stream_ab) as upstream:
        for _ in range(3):
            async with transport.open(upstream.ask()) as response:
                assert await body_of(response) == b"ab"
        assert {exchange.request.connection for exchange in upstream.exchanges} == {1}


async def test_a_stream_that_was_finished_keeps_its_connection(transport: Transport) -> None:
    async def send_done(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None)
        await exchange.send_body(b"data: [DONE]\n\n")
        await asyncio.sleep(0.01)  # the last, empty chunk comes in a packet of its own
        await exchange.end_body()

    async with upstream_of(send_done) as upstream:
        for _ in range(2):
            async with transport.open(upstream.ask()) as response:
                async for _chunk in pieces_of(response):
                    break
                await response.finish()
        assert {exchange.request.connection for exchange in upstream.exchanges} == {1}


async def test_finish_waits_for_a_moment_only(transport: Transport) -> None:
    async def never_end(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None)
        await exchange.send_body(b"data: [DONE]\n\n")
        await hang()

    async with upstream_of(never_end) as upstream:
        with anyio.fail_after(3):
            async with transport.open(upstream.ask()) as response:
                async for _chunk in pieces_of(response):
                    break
                await response.finish()
        await upstream.client_left()


async def test_an_answer_that_was_not_read_closes_its_connection(transport: Transport) -> None:
    async def never_end(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None)
        while True:
            await exchange.send_body(b"more")
            await asyncio.sleep(0.005)

    async with upstream_of(never_end) as upstream:
        async with transport.open(upstream.ask()) as response:
            async for _chunk in pieces_of(response):
                break
        await upstream.client_left()


async def test_chunks_come_as_they_arrive(transport: Transport) -> None:
    go_on = asyncio.Event()

    async def in_two(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None)
        await exchange.send_body(b"first")
        await go_on.wait()
        await exchange.send_body(b"last")
        await exchange.end_body()

    async with upstream_of(in_two) as upstream, transport.open(upstream.ask()) as response:
        chunks = pieces_of(response)
        with anyio.fail_after(3):
            assert await chunks.__anext__() == b"first"
            go_on.set()
            assert await chunks.__anext__() == b"last"
            assert [chunk async for chunk in chunks] == []


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_000])
@pytest.mark.parametrize("is_chunked", [True, False])
async def test_bodies_of_any_size(transport: Transport, size: int, is_chunked: bool) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)

    async def send_all(exchange: Exchange) -> None:
        await exchange.send_head(200, [], length=None if is_chunked else size)
        for start in range(0, size, 50_000):
            await exchange.send_body(body[start : start + 50_000])
        await exchange.end_body()

    async with upstream_of(send_all) as upstream:
        for _ in range(2):
            async with transport.open(upstream.ask(body=body)) as response:
                assert await body_of(response) == body
        assert upstream.exchanges[0].request.body == body


async def test_an_answer_that_ends_with_its_connection_is_whole(transport: Transport) -> None:
    async def send_until_close(exchange: Exchange) -> None:
        await exchange.send_raw(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello")
        exchange.close()

    async with (
        upstream_of(send_until_close) as upstream,
        transport.open(upstream.ask()) as response,
    ):
        assert await body_of(response) == b"hello"


async def test_a_compressed_answer_is_decoded(transport: Transport) -> None:
    packed = gzip.compress(b'{"a":1}')

    async def send_packed(exchange: Exchange) -> None:
        await exchange.send_head(200, [("content-encoding", "gzip")], length=len(packed))
        await exchange.send_body(packed)

    async with upstream_of(send_packed) as upstream, transport.open(upstream.ask()) as response:
        assert await body_of(response) == b'{"a":1}'


async def test_a_redirect_is_an_answer(transport: Transport) -> None:
    async def elsewhere(exchange: Exchange) -> None:
        await exchange.send_head(302, [("location", "/elsewhere")], length=0)

    async with upstream_of(elsewhere) as upstream:
        async with transport.open(upstream.ask()) as response:
            assert response.status == 302
        assert len(upstream.exchanges) == 1


async def test_no_cookie_is_kept(transport: Transport) -> None:
    async def set_cookie(exchange: Exchange) -> None:
        await exchange.send_head(200, [("set-cookie", "session=1; Path=/")], length=0)

    async with upstream_of(set_cookie) as upstream:
        for _ in range(2):
            async with transport.open(upstream.ask()) as response:
                await body_of(response)
        assert upstream.exchanges[1].request.header("cookie") is None


async def test_no_proxy_of_the_environment_is_asked(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with upstream_of(say_hello) as upstream, transport.open(upstream.ask()) as response:
        assert await body_of(response) == b"hello"


async def test_closing_twice_and_without_use(transport: Transport) -> None:
    await transport.aclose()
    await transport.aclose()
