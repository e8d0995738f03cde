"""Trailers without end, of clients and of upstreams."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import pytest

from tests.router.scenes import CHAT, chat
from tests.router.upstreams import OK, for_ever, scene

HEAD = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n" % CHAT.encode()
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\n \r\n0\r\n"


@pytest.mark.slow
async def test_a_clients_trailers_are_refused_at_the_size_of_a_head(tmp_path: Path) -> None:
    async with scene(tmp_path) as (router, _):
        before = router.rss_mb()
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(CHUNKED + b"a: b\r\n" * 50_000)
        with anyio.fail_after(10):
            async with router.meanwhile(chat()):
                raw = await reader.read(9)
                assert raw == b"HTTP/1.1 "
                assert await reader.read(3) == b"431"
        writer.close()
        assert router.rss_mb() - before < 16


@pytest.mark.slow
async def test_an_upstreams_trailers_end_at_the_size_of_a_head(tmp_path: Path) -> None:
    async with scene(tmp_path) as (router, upstream):
        head = OK + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        upstream.cases["x"] = for_ever(head + b"2\r\n{}\r\n0\r\nx: ", b"y" * 16_384)
        async with router.meanwhile(chat()):
            with anyio.fail_after(10):
                answer = await router.client.post(CHAT, json=chat(x="x"))
        assert answer.status_code in {200, 502}
        await upstream.left()
