"""A client's connection, down to the bytes: what came, in which pieces, and how it ended."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import TypeVar

from tests.soak.plan import PATIENCE_S

_T = TypeVar("_T")
_NARROW = 4096


class Broken(Exception):
    """The connection ended before the answer was whole."""


class Late(Exception):
    """Nothing came for longer than any limit of the router allows."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of an answer; names in lower case."""

    status: int
    headers: dict[str, str]

    @property
    def is_chunked(self) -> bool:
        """Tell how the body is framed."""
        return self.headers.get("transfer-encoding", "").lower() == "chunked"


class Line:
    """One connection. Reading raises `Broken` and `Late`, writing neither."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int, *, is_narrow: bool = False) -> Line:
        """Connect; a narrow one takes little at once, so that a slow reader holds up the sender."""
        sock = socket.socket()
        if is_narrow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW)
        sock.setblocking(False)
        try:
            await _timed(asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port)))
        except BaseException:
            sock.close()
            raise
        limit = 2 * _NARROW if is_narrow else 65536
        return cls(*await asyncio.open_connection(sock=sock, limit=limit))

    async def send(self, data: bytes) -> None:
        """Send bytes; a server that closed is noticed while reading."""
        try:
            self._writer.write(data)
            await _timed(self._writer.drain())
        except (ConnectionError, Broken):
            return

    def end_sending(self) -> None:
        """Close our direction only."""
        self._writer.write_eof()

    def close(self) -> None:
        """Leave, at once."""
        self._writer.transport.abort()

    async def head(self) -> Head:
        """Return the next answer's head."""
        raw = await self._read(self._reader.readuntil(b"\r\n\r\n"))
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return Head(int(first.split()[1]), {k.lower(): v.strip() for k, _, v in pairs})

    async def pieces(self, head: Head) -> AsyncIterator[bytes]:
        """Iterate over the body as it comes."""
        if head.is_chunked:
            while size := int(await self._read(self._reader.readuntil(b"\r\n")), 16):
                yield (await self._read(self._reader.readexactly(size + 2)))[:-2]
            await self._read(self._reader.readexactly(2))
            return
        left = int(head.headers.get("content-length", "0"))
        while left:
            piece = await self._read(self._reader.read(min(left, 65536)))
            left -= len(piece)
            yield piece

    async def closed(self) -> bytes:
        """Wait until the server closes and return what came until then."""
        try:
            return await _timed(self._reader.read(-1))
        except Broken:
            return b""

    async def _read(self, reading: Awaitable[bytes]) -> bytes:
        data = await _timed(reading)
        if not data:
            raise Broken
        return data


async def _timed(waiting: Awaitable[_T]) -> _T:
    try:
        return await asyncio.wait_for(waiting, PATIENCE_S)
    except asyncio.TimeoutError:
        raise Late from None
    except (ConnectionError, asyncio.IncompleteReadError):
        raise Broken from None


def render(
    body: bytes,
    *,
    path: str,
    request_id: str,
    key: str,
    method: str = "POST",
    **headers: str,
) -> bytes:
    """Return a request; `headers` with `_` for `-` come on top, an empty one takes a header away."""
    fields = {
        "host": "localhost",
        "content-type": "application/json",
        "x-request-id": request_id,
        "authorization": f"Bearer {key}",
        "content-length": str(len(body)),
    }
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items() if v)]
    return "\r\n".join([*lines, "", ""]).encode() + body
