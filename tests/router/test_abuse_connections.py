"""Clients that hold connections for nothing: they are cut in time, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from shared.testing.raw_client import connected, render_request
from tests.router.process import RouterProcess
from tests.router.scenes import CHAT, chat
from tests.router.upstreams import EVENT, MIB, SSE_HEAD, for_ever, scene

# a machine of its own: it holds times that other tests beside it would spoil
pytestmark = pytest.mark.integration

LIMITS = {"head_s": 1.5, "write_s": 1.5, "body_idle_s": 1.0, "keep_alive_s": 1.5}
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def many(
    router: RouterProcess, count: int, data: bytes, *, window: int | None = None
) -> AsyncIterator[list[Pair]]:
    """Open connections, send the same on each, and close them in the end.

    `window` is how many bytes the system takes for who does not read; else it decides, up to megabytes.
    """
    found: list[Pair] = []
    try:
        for start in range(0, count, 100):
            opened = (_opened(router.port, window) for _ in range(min(100, count - start)))
            found += await asyncio.gather(*opened)
        for _, writer in found:
            writer.write(data)
        yield found
    finally:
        for _, writer in found:
            writer.transport.abort()


async def _opened(port: int, window: int | None) -> Pair:
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(socket.socket())
        if window is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", port))
        stack.pop_all()
    return await asyncio.open_connection(sock=one)


async def ends(pairs: list[Pair], timeout_s: float = 10.0) -> set[bytes]:
    """Return how the answers begin, once the router has closed every connection."""
    with anyio.fail_after(timeout_s):
        answers = await asyncio.gather(*(reader.read() for reader, _ in pairs))
    return {answer[:12] for answer in answers}


CHUNKED = render_request("POST", CHAT, b"", {"host": "localhost"}).replace(
    b"content-length: 0", b"transfer-encoding: chunked"
)
HALVES = {
    "nothing": (b"", b"HTTP/1.1 408"),
    "half a line": (b"POST /v1/chat", b"HTTP/1.1 408"),
    "half a head": (b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n", b"HTTP/1.1 408"),
    "half a body": (
        render_request("POST", CHAT, b"{", {"host": "localhost", "content-length": "100"}),
        b"HTTP/1.1 408",
    ),
    "half a chunked body": (CHUNKED + b"5\r\n{", b"HTTP/1.1 408"),
    "a body for a route without one": (
        render_request("GET", "/health", b"{", {"host": "localhost", "content-length": "100"}),
        b"HTTP/1.1 200",
    ),
}


@pytest.mark.parametrize("case", HALVES)
async def test_half_sent_requests_are_cut(tmp_path: Path, case: str) -> None:
    async with scene(tmp_path, limits=LIMITS) as (router, _):
        data, expected = HALVES[case]
        before = router.files()
        async with router.meanwhile(chat()), many(router, 300, data) as pairs:
            assert await ends(pairs) == {expected}
        await router.files_fall_to(before + 4)


async def test_a_head_that_drips_is_cut(tmp_path: Path) -> None:
    async with (
        scene(tmp_path, limits=LIMITS) as (router, _),
        router.meanwhile(chat()),
        many(router, 50, b"GET /health HTTP/1.1\r\n") as pairs,
    ):
        reading = asyncio.create_task(ends(pairs, 5.0))
        while not reading.done():
            for _, writer in pairs:
                if not writer.transport.is_closing():
                    writer.write(b"x: y\r\n")
            await asyncio.sleep(0.1)
        assert reading.result() == {b"HTTP/1.1 408"}


async def test_a_body_that_drips_is_cut(tmp_path: Path) -> None:
    async with (
        scene(tmp_path, limits={**LIMITS, "body_grace_s": 1.5}) as (router, _),
        router.meanwhile(chat()),
        many(router, 50, CHUNKED) as pairs,
    ):
        reading = asyncio.create_task(ends(pairs, 5.0))
        while not reading.done():
            for _, writer in pairs:
                if not writer.transport.is_closing():
                    writer.write(b"1\r\n \r\n")
            await asyncio.sleep(0.1)
        assert reading.result() == {b"HTTP/1.1 408"}


async def test_thousands_of_idle_connections_cost_little_and_are_closed(tmp_path: Path) -> None:
    limits = {**LIMITS, "head_s": 20.0}
    async with scene(tmp_path, limits=limits) as (router, _):
        files, memory = router.files(), router.rss_mb()
        kept = render_request(
            "GET", "/health", None, {"host": "localhost", "connection": "keep-alive"}
        )
        async with router.meanwhile(chat()), many(router, 2000, kept) as pairs:
            for reader, _ in pairs:
                await reader.readuntil(b"}")
            assert router.rss_mb() - memory < 64
            assert await ends(pairs) == {b""}
        await router.files_fall_to(files + 4)


async def test_clients_that_do_not_read_are_cut(tmp_path: Path) -> None:
    async with scene(tmp_path, limits=LIMITS) as (router, upstream):
        # big ones: the system takes megabytes for each connection before anybody has to wait
        big = EVENT.replace(b'"id":"', b'"id":"' + b"a" * 60_000)
        upstream.cases["x"] = for_ever(SSE_HEAD + EVENT, big, 0.01)
        files, memory = router.files(), router.rss_mb()
        request = render_request("POST", CHAT, chat(x="x", stream=True), {"host": "localhost"})
        async with router.meanwhile(chat()), many(router, 30, b"", window=64 * 1024) as pairs:
            for _, writer in pairs:
                writer.transport.pause_reading()  # type: ignore[attr-defined] # it is a socket's
                writer.write(request)
            with anyio.fail_after(3):
                while upstream.open < len(pairs):
                    await asyncio.sleep(0.01)
            await upstream.left(10)
            assert router.rss_mb() - memory < 64
        await router.files_fall_to(files + 8)


async def test_pipelined_requests_wait_in_bounded_memory(tmp_path: Path) -> None:
    async with scene(tmp_path, limits=LIMITS) as (router, _):
        memory = router.rss_mb()
        one = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
        async with router.meanwhile(chat()):
            async with many(router, 5, b"") as pairs:
                for _, writer in pairs:
                    writer.transport.pause_reading()  # type: ignore[attr-defined] # it is a socket's
                    for _ in range(20):
                        writer.write(one * 2000)
                await asyncio.sleep(1.0)
            assert router.rss_mb() - memory < 64


async def test_those_who_pipeline_too_much_are_answered_to_a_limit(tmp_path: Path) -> None:
    async with scene(tmp_path, limits={"max_pipelined": 5}) as (router, _):
        one = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"
        for count, expected in ((6, 6), (7, 6), (5000, 6)):
            async with connected(router.base_url) as (reader, writer):
                writer.write(one * count)
                with anyio.fail_after(5):
                    found = b""
                    while found.count(b'"object":"list"') < expected:
                        piece = await reader.read(65536)
                        assert piece, found
                        found += piece
                    if count > expected:
                        found += await reader.read()
            assert found.count(b"HTTP/1.1 200 ") == found.count(b"HTTP/1.1 ") == expected


async def test_storms_of_resets_leave_nothing_behind(tmp_path: Path) -> None:
    async with scene(tmp_path, limits=LIMITS) as (router, upstream):
        upstream.cases["x"] = for_ever(SSE_HEAD + EVENT, EVENT, 0.05)
        files = router.files()
        async with router.meanwhile(chat()):
            for data in (
                b"",
                HALVES["half a body"][0],
                render_request("POST", CHAT, chat(x="x", stream=True), {"host": "localhost"}),
                render_request("POST", CHAT, chat(x="x"), {"host": "localhost"}),
            ):
                for _ in range(3):
                    async with many(router, 100, data):
                        await asyncio.sleep(0.02)
        await upstream.left(5)
        await router.files_fall_to(files + 8)
        assert "internal_error" not in router.log()


async def test_more_connections_than_files(tmp_path: Path) -> None:
    """With no file left, those who are connected hear an error; afterwards all is well."""
    async with scene(tmp_path, limits={**LIMITS, "files": 120}) as (router, _):
        before = router.files()
        assert (await router.client.get("/health")).status_code == 200
        async with many(router, 300, b"GET /health HTTP/1.1\r\n"):
            await asyncio.sleep(0.3)
            # this connection was there before
            assert (await router.client.get("/health")).status_code == 200
        await router.files_fall_to(before + 4)
        async with router.meanwhile(chat()):
            await asyncio.sleep(0.3)


async def test_large_bodies_are_refused_and_not_kept(tmp_path: Path) -> None:
    environment = {"ROUTER_MAX_BODY_MB": "1"}
    async with scene(tmp_path, limits=LIMITS, **environment) as (router, _):
        memory = router.rss_mb()
        declared = render_request(
            "POST", CHAT, b"{", {"host": "localhost", "content-length": "9" * 11}
        )
        async with router.meanwhile(chat()):
            async with many(router, 50, declared) as pairs:
                assert await ends(pairs) == {b"HTTP/1.1 413"}
            async with connected(router.base_url) as (reader, writer):
                writer.write(CHUNKED)
                piece = b"100000\r\n" + b"x" * MIB + b"\r\n"
                for _ in range(4):
                    writer.write(piece)
                with anyio.fail_after(5):
                    assert (await reader.read(12)) == b"HTTP/1.1 413"
                with pytest.raises(ConnectionError):
                    for _ in range(128):
                        writer.write(piece)
                        await writer.drain()
        assert router.rss_mb() - memory < 64
