"""A client that shows the bytes: for tests of what really goes over the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


def render_request(
    method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return an HTTP/1.1 request that asks to close afterwards; `body` becomes JSON."""
    content = (
        body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    )
    fields = {"host": "simulated", "connection": "close", "content-type": "application/json"}
    fields |= {"content-length": str(len(content)), **(headers or {})}
    lines = [f"{method} {path} HTTP/1.1", *(f"{key}: {value}" for key, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + content


@asynccontextmanager
async def connected(
    base_url: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection; leaving the block closes it, whatever is still to come."""
    address = urlsplit(base_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def call_raw(
    base_url: str,
    path: str,
    body: object = None,
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Send one request and return every byte until the server closes.

    Raises:
        ConnectionResetError: the server sent a RST before a single byte.
    """
    async with connected(base_url) as (reader, writer):
        writer.write(render_request(method, path, body, headers))
        await writer.drain()
        found = bytearray()
        try:
            while piece := await reader.read(65536):
                found += piece
        except ConnectionResetError:
            if not found:
                raise
        return bytes(found)


def split_answer(raw: bytes) -> tuple[bytes, bytes]:
    """Return head and body; the body is put together if it is chunked, as far as it goes."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return head, rest
    body = bytearray()
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        rest = rest[length + 2 :]
    return head, bytes(body)
