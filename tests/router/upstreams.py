"""Upstreams that answer what no upstream should, and a router in front of one."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import httpx

from shared.testing.wire import Exchange, WireServer
from tests.router.process import RouterProcess, router_process
from tests.router.scenes import CHAT, chat

MIB = 2**20
JSON = [("content-type", "application/json")]
SSE = [("content-type", "text/event-stream")]
CHUNK = (
    b'{"id":"a","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}'
)
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
EVENT = b"data: " + CHUNK + b"\n\n"
ANSWER = b'{"id":"a","object":"chat.completion","choices":[]}'
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BODY = b"content-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
# What the router may grow by, whatever comes: it holds at most 8 MiB of an answer.
GROWTH_MB = 64

Answering = Callable[[Exchange], Awaitable[None]]


def raw(data: bytes, times: int = 1) -> Answering:
    """Return what sends bytes as they are, and closes."""

    async def answering(exchange: Exchange) -> None:
        for _ in range(times):
            await exchange.send_raw(data)
        exchange.close()

    return answering


def for_ever(begin: bytes, piece: bytes, pause_s: float = 0.0) -> Answering:
    """Return what never stops to send."""

    async def answering(exchange: Exchange) -> None:
        await exchange.send_raw(begin)
        while True:
            await exchange.send_raw(piece)
            await asyncio.sleep(pause_s)

    return answering


def body(head: list[tuple[str, str]], *pieces: bytes, status: int = 200) -> Answering:
    """Return what sends pieces of a chunked body."""

    async def answering(exchange: Exchange) -> None:
        await exchange.send_head(status, head, length=None)
        for piece in pieces:
            await exchange.send_body(piece)
        await exchange.end_body()

    return answering


@cache
def bomb(unit: bytes, wbits: int = 31, size: int = 300 * MIB) -> bytes:
    """Return a small body that unpacks to a large one: one packed block, again and again."""
    block, times = unit * (MIB // len(unit)), size // MIB
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)) * times + b"\x03\0"
    is_gzip = wbits == 31
    check = 0 if is_gzip else 1
    for _ in range(times):
        check = (zlib.crc32 if is_gzip else zlib.adler32)(block, check)
    if is_gzip:
        tail = struct.pack("<II", check, len(block) * times)
        return b"\x1f\x8b\x08\0\0\0\0\0\2\xff" + packed + tail
    return b"\x78\xda" + packed + struct.pack(">I", check)


class Upstream:
    """Serves the model `tiny` well, and each request that names a case as the case says."""

    def __init__(self) -> None:
        self.cases: dict[str, Answering] = {}
        self.open = 0
        self.server = WireServer(self._answer)

    async def _answer(self, exchange: Exchange) -> None:
        case = json.loads(exchange.request.body or b"{}").get("x")
        if case is None:
            await exchange.send_head(200, JSON, length=len(ANSWER))
            await exchange.send_body(ANSWER)
            return
        self.open += 1
        try:
            await self.cases[case](exchange)
        finally:
            self.open -= 1

    async def left(self, timeout_s: float = 2.0) -> None:
        """Wait until the router has closed what never ends."""
        with anyio.fail_after(timeout_s):
            while self.open:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def scene(
    home: Path, limits: Mapping[str, Any] | None = None, **environment: str
) -> AsyncIterator[tuple[RouterProcess, Upstream]]:
    """Start a router in front of an upstream; see `router_process`."""
    upstream = Upstream()
    url = await upstream.server.start("127.0.0.1", 0)
    quiet = {"ROUTER_BREAKER_FAILURES": "1000000", "ROUTER_PROBE_S": "0"}
    settings: dict[str, Any] = {**quiet, **environment}
    try:
        async with router_process(home, upstream=url, limits=limits, **settings) as router:
            yield router, upstream
    finally:
        await upstream.server.close()


async def ask(router: RouterProcess, case: str, *, stream: bool = False) -> httpx.Response:
    fields: dict[str, Any] = {"stream": True} if stream else {}
    with anyio.fail_after(15):
        return await router.client.post(CHAT, json=chat(x=case, **fields))


@dataclass(frozen=True, slots=True)
class SharedScene:
    """A router in front of an upstream that the tests of a module share; each sets cases of its own."""

    router: RouterProcess
    upstream: Upstream
    fresh_mb: float

    def grown_mb(self) -> float:
        """Return how much more memory the router has than after its first request, in MiB."""
        return self.router.rss_mb() - self.fresh_mb

    @asynccontextmanager
    async def in_bounded_memory(self) -> AsyncIterator[None]:
        """Hold that normal requests are answered meanwhile, and what all tests together let it grow by."""
        async with self.router.meanwhile(chat()):
            yield
        await self.upstream.left()
        assert self.grown_mb() < GROWTH_MB
        assert "internal_error" not in self.router.log()


@asynccontextmanager
async def shared_scene(home: Path) -> AsyncIterator[SharedScene]:
    """Start a router that has served one request."""
    async with scene(home) as (router, upstream):
        await router.client.post(CHAT, json=chat())
        yield SharedScene(router, upstream, router.rss_mb())
