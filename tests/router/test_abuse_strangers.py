"""Who has no key costs nothing: no body is read, and none is waited for."""

from __future__ import annotations

import asyncio

import pytest

from shared.testing.raw_client import connected, render_request
from tests.router.harness import StartRouter


@pytest.mark.parametrize("length", ["1000", "100000000"])
async def test_a_stranger_is_refused_before_its_body(
    start_router: StartRouter, length: str
) -> None:
    """Of a body that is declared, nothing ever comes: the answer must not wait for it."""
    headers = {"host": "localhost", "content-length": length}
    request = render_request("PUT", "/internal/v1/agents/x", b"", headers)
    async with start_router() as router, connected(router.base_url) as (reader, writer):
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2)
    assert head.startswith(b"HTTP/1.1 401 ")
