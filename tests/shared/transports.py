"""What the tests of `Transport` share: each that there is, and an upstream that answers as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest

from shared.http.aiohttp_transport import AiohttpTransport
from shared.http.errors import ApiError
from shared.http.lean_transport import LeanTransport
from shared.http.transport import InboundResponse, OutboundRequest, Timeouts, Transport
from shared.testing.wire import Exchange, WireServer

TRANSPORTS: dict[str, Callable[[], Transport]] = {
    "aiohttp": AiohttpTransport,
    "lean": LeanTransport,
}
OK = b"HTTP/1.1 200 OK\r\n"
SHORT = Timeouts(connect_s=0.15, first_byte_s=0.15, idle_s=0.15)
LONG = Timeouts(connect_s=5, first_byte_s=5, idle_s=5)


class Upstream:
    """A server whose answer is a function; it remembers requests and who left."""

    def __init__(self, answer: Callable[[Exchange], Awaitable[None]]) -> None:
        self.exchanges: list[Exchange] = []
        self.url = ""
        self._answer = answer
        self._left = asyncio.Event()

    async def handle(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        try:
            await self._answer(exchange)
        finally:
            if exchange.client_left:
                self._left.set()

    async def asked(self) -> None:
        """Wait until a request is here and what is answered to it had time to arrive."""
        with anyio.fail_after(5):
            while not self.exchanges:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.03)

    async def client_left(self) -> None:
        with anyio.fail_after(5):
            await self._left.wait()

    def ask(
        self, *, body: bytes | None = b"{}", timeouts: Timeouts = LONG, path: str = "/v1/x"
    ) -> OutboundRequest:
        headers = (("content-type", "application/json"), ("x-own", "Value"))
        return OutboundRequest(
            method="POST", url=self.url + path, headers=headers, body=body, timeouts=timeouts
        )


@asynccontextmanager
async def upstream_of(answer: Callable[[Exchange], Awaitable[None]]) -> AsyncIterator[Upstream]:
    upstream = Upstream(answer)
    server = WireServer(upstream.handle)
    upstream.url = await server.start("127.0.0.1", 0)
    try:
        yield upstream
    finally:
        await server.close()


async def pieces_of(response: InboundResponse) -> AsyncIterator[bytes]:
    while piece := await response.read():
        yield piece


async def body_of(response: InboundResponse) -> bytes:
    return b"".join([piece async for piece in pieces_of(response)])


async def hang(_exchange: Exchange | None = None) -> None:
    await asyncio.get_running_loop().create_future()


def raw(*pieces: bytes, close: bool = False) -> Callable[[Exchange], Awaitable[None]]:
    """Return what answers with bytes as they are."""

    async def answer(exchange: Exchange) -> None:
        for piece in pieces:
            await exchange.send_raw(piece)
        if close:
            exchange.close()

    return answer


async def say_hello(exchange: Exchange) -> None:
    await exchange.send_head(200, [("content-type", "text/plain"), ("X-Twice", "1")], length=5)
    await exchange.send_body(b"hello")
    await exchange.end_body()


async def stream_ab(exchange: Exchange) -> None:
    await exchange.send_head(200, [], length=None)
    await exchange.send_body(b"a")
    await exchange.send_body(b"b")
    await exchange.end_body()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def bytes_server(handle: Handler, **options: Any) -> AsyncIterator[str]:
    """Serve connections with `handle`, which sees bytes, not requests; ends with it cancelled."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError, asyncio.IncompleteReadError, OSError):
            await handle(reader, writer)
        writer.transport.abort()
        await asyncio.sleep(0)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, **options)
    scheme = "https" if options.get("ssl") else "http"
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)


@asynccontextmanager
async def lean(**options: Any) -> AsyncIterator[LeanTransport]:
    transport = LeanTransport(**options)
    try:
        yield transport
    finally:
        await transport.aclose()
        assert not transport._connections
        assert not transport._idle


def get(url: str, timeouts: Timeouts = LONG) -> OutboundRequest:
    return OutboundRequest(method="GET", url=url, timeouts=timeouts)


def kept(transport: LeanTransport) -> int:
    return sum(map(len, transport._idle.values()))


async def answer_to(transport: LeanTransport, request: OutboundRequest) -> bytes:
    with anyio.fail_after(5):
        async with transport.open(request) as response:
            return await body_of(response)


async def failure_of(answer: bytes, *, close: bool = True) -> ApiError:
    async with upstream_of(raw(answer, close=close)) as upstream, lean() as transport:
        with pytest.raises(ApiError) as failed:
            await answer_to(transport, upstream.ask())
        assert kept(transport) == 0
        return failed.value
