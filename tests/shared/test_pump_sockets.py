"""Streams over real sockets, our server and uvloop's or asyncio's loop: the pump and the other ways give the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from starlette.types import Receive, Scope, Send

from shared.http.aiohttp_transport import AiohttpTransport
from shared.http.asgi import ClientGone, read_body
from shared.http.errors import ApiError
from shared.http.exchange import exchange
from shared.http.guard import Guard
from shared.http.lean_transport import LeanTransport
from shared.http.origin import OriginRules
from shared.http.pump import pump_for
from shared.http.relay import relay, while_connected
from shared.http.transport import OutboundRequest, Timeouts, Transport
from shared.testing.raw_client import call_raw, connected, render_request, split_answer
from shared.testing.serving import serving
from shared.testing.wire import Exchange, WireServer
from tests.shared.exchanges import CHUNK, DONE
from tests.shared.pumps import HEAD, chunk, iterating

LIMITS = Timeouts(connect_s=30, first_byte_s=30, idle_s=30)
WAYS = ["pump", "iteration", "aiohttp"]
MIB = 2**20
HOST = {"host": "localhost"}


def numbered(number: int) -> bytes:
    return CHUNK.replace(b'"a"', b'"%d"' % number)


@dataclass
class Service:
    """Relays every request's stream from one upstream, guarded as a service is; remembers how that ended."""

    url: str
    way: str
    transport: Transport
    ends: list[ApiError | str | None] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": message["type"] + ".complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        try:
            await self._serve(scope, receive, send if self.way == "pump" else iterating(send))
        except ClientGone:
            self.ends.append("abandoned")
            raise

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, limit=MIB)
        request = OutboundRequest(method="POST", url=self.url, body=body, timeouts=LIMITS)
        async with (
            while_connected(scope, receive) as stop_watching,
            exchange(self.transport, request) as reply,
        ):
            assert (pump_for(reply.chunks, send) is not None) is (self.way == "pump")
            failure = await relay(reply, send)
            stop_watching()
            self.ends.append(failure)

    async def ended(self, count: int = 1) -> None:
        with anyio.fail_after(30):
            while len(self.ends) < count:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def service(
    answer: Callable[[Exchange], Awaitable[None]], way: str = "pump"
) -> AsyncIterator[tuple[Service, str]]:
    upstream = WireServer(answer)
    transport: Transport = AiohttpTransport() if way == "aiohttp" else LeanTransport()
    app = Service(await upstream.start("127.0.0.1", 0), way, transport)
    guard = Guard(app, rules=OriginRules("127.0.0.1", "X"), clock=lambda: 0.0)
    try:
        async with serving(guard) as url:
            yield app, url
    finally:
        await transport.aclose()
        await upstream.close()
    assert upstream.failures == []


EVENTS = [numbered(number) for number in range(20)]
ODD = b"".join([*EVENTS, b": x\n\n", b"id: 1\n\n"]).replace(b"\n", b"\r\n") + b"data: {}\n\n"
SHAPES: dict[str, tuple[list[bytes], bytes]] = {
    "event by event": ([chunk(event) for event in EVENTS], b"".join(EVENTS)),
    "byte by byte": (
        [bytes([byte]) for byte in b"".join(map(chunk, EVENTS))],
        b"".join(EVENTS),
    ),
    "CRLF": ([chunk(ODD)], ODD.split(b"id: 1")[0]),
    "batches": ([chunk(b"".join(EVENTS) * 100)] * 4, b"".join(EVENTS) * 400),
    "batches of chunks": ([b"".join(map(chunk, EVENTS)) * 100] * 4, b"".join(EVENTS) * 400),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
async def test_streams_of_every_shape_arrive_byte_for_byte(shape: str, way: str) -> None:
    pieces, expected = SHAPES[shape]
    connections: list[int] = []

    async def answer(exchange: Exchange) -> None:
        connections.append(exchange.request.connection)
        await exchange.send_raw(HEAD + chunk(CHUNK))
        for piece in pieces:
            await exchange.send_raw(piece)
        await exchange.send_raw(chunk(DONE) + b"0\r\n\r\n")

    async with service(answer, way) as (app, url):
        for count in (1, 2):
            with anyio.fail_after(30):
                raw = await call_raw(url, "/", {}, headers=HOST)
            assert split_answer(raw)[1] == CHUNK + expected + DONE
            assert raw.endswith(b"0\r\n\r\n")
            await app.ended(count)
        assert app.ends == [None, None]
    assert len(set(connections)) == 1  # it went back whole, and served the second one


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_does_not_read_holds_up_its_upstream_and_loses_nothing(
    way: str,
) -> None:
    """What is on the way is bounded: the upstream is stopped long before it sent 64 MiB."""
    sent, total = 0, 64 * MIB // len(CHUNK)
    is_stopped = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send_raw(HEAD)
        while sent < total and not is_stopped.is_set():
            batch = b"".join([chunk(numbered(number)) for number in range(sent, sent + 500)])
            sending = asyncio.ensure_future(exchange.send_raw(batch))
            done, _ = await asyncio.wait([sending], timeout=0.5)
            sent += 500
            if not done:
                is_stopped.set()
            await sending
        await exchange.send_raw(chunk(DONE) + b"0\r\n\r\n")

    async with service(answer, way) as (app, url), connected(url) as (reader, writer):
        writer.write(render_request("POST", "/", {}, HOST))
        with anyio.fail_after(30):
            await is_stopped.wait()
            assert app.ends == []
            raw = await reader.read()
        assert sent < total
        expected = b"".join([*map(numbered, range(sent)), DONE])
        assert split_answer(raw)[1] == expected
        await app.ended()
        assert app.ends == [None]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reads", [True, False])
async def test_a_client_that_leaves_ends_its_upstream(way: str, reads: bool) -> None:
    left = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        try:
            await exchange.send_raw(HEAD)
            while True:
                await exchange.send_raw(chunk(CHUNK) * 1000)
        finally:
            left.set()

    async with service(answer, way) as (app, url):
        async with connected(url) as (reader, writer):
            writer.write(render_request("POST", "/", {}, HOST))
            await reader.readuntil(CHUNK)
            for _ in range(20 if reads else 0):
                await reader.readexactly(65536)
        with anyio.fail_after(30):
            await left.wait()
        await app.ended()
        assert app.ends == ["abandoned"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", ["reset", "end", "no JSON", "error"])
async def test_a_stream_that_breaks_ends_with_one_error_event(fault: str, way: str) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.send_raw(HEAD + chunk(CHUNK))
        await exchange.send_raw(chunk(CHUNK))
        if fault == "no JSON":
            await exchange.send_raw(chunk(b"data: {]}\n\n"))
        elif fault == "error":
            await exchange.send_raw(chunk(b'data: {"error":{"message":"broke"}}\n\n'))
        elif fault == "end":
            await exchange.send_raw(b"0\r\n\r\n")
        else:
            await heard.wait()
            exchange.close(reset=True)

    heard = asyncio.Event()
    async with service(answer, way) as (app, url), connected(url) as (reader, writer):
        writer.write(render_request("POST", "/", {}, HOST))
        with anyio.fail_after(30):
            begin = await reader.readuntil(CHUNK)
            begin += await reader.readuntil(CHUNK)
            heard.set()
            raw = begin + await reader.read()
        body = split_answer(raw)[1]
        assert body.startswith(CHUNK * 2)
        assert body.count(b'"error":{') == 1
        assert raw.endswith(b"0\r\n\r\n")
        await app.ended()
        assert isinstance(app.ends[0], ApiError)
