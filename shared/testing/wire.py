"""An HTTP/1.1 server that leaves every byte of an answer to its caller.

Servers made for production refuse to send what a broken upstream sends: half a chunk, a reset, two
`server` headers. Tests need exactly that, so this one frames nothing by itself but what it is asked
to. Requests are parsed by httptools; one connection serves its requests one after another.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote

import httptools

MAX_BODY_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came; header names are in lower case and may repeat."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    version: str = "1.1"
    keep_alive: bool = True
    connection: int = 0

    @property
    def path(self) -> str:
        """The path without its query, percent escapes decoded."""
        return unquote(self.target.partition("?")[0])

    def header(self, name: str) -> str | None:
        """Return the first header of this (lower-case) name."""
        return next((value for key, value in self.headers if key == name), None)


class Exchange:
    """One request and the wire to answer it on. Each `send…` waits until the socket takes it."""

    def __init__(self, request: Request, connection: Connection) -> None:
        """Tie the request to its connection."""
        self.request = request
        self.client_left = False
        self._connection = connection
        self._is_chunked = False

    async def send_head(
        self,
        status: int,
        headers: list[tuple[str, str]],
        *,
        length: int | None,
        drip_s: float = 0.0,
    ) -> None:
        """Send status line and headers; without a `length` the body is chunked.

        Args:
            status: any number, known or not.
            headers: sent as given; framing headers are added.
            length: what `content-length` claims. Nothing checks that the body agrees.
            drip_s: spread the head's bytes over this many seconds.
        """
        self._is_chunked = length is None and self.request.version != "1.0"
        framing = [("transfer-encoding", "chunked")] if self._is_chunked else []
        if length is not None:
            framing.append(("content-length", str(length)))
        if not self.request.keep_alive:
            framing.append(("connection", "close"))
        head = render_head(status, [*headers, *framing])
        if drip_s <= 0:
            await self.send_raw(head)
            return
        for byte in head:
            await self.send_raw(bytes([byte]))
            await asyncio.sleep(drip_s / len(head))

    async def send_body(self, data: bytes) -> None:
        """Send a piece of the body, as one chunk if the body is chunked."""
        if self.request.method == "HEAD" or not data:
            return
        await self.send_raw(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    async def end_body(self) -> None:
        """Send the last chunk; close if the client did not ask to keep the connection."""
        if self._is_chunked and self.request.method != "HEAD":
            await self.send_raw(b"0\r\n\r\n")
        if not self.request.keep_alive:
            self.close()

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self._connection.write(data)

    def close(self, *, reset: bool = False) -> None:
        """Close without another byte: an orderly FIN, or a RST if `reset`."""
        self._connection.close(reset=reset)


Handler = Callable[[Exchange], Awaitable[None]]


def render_head(status: int, headers: list[tuple[str, str]]) -> bytes:
    """Return an HTTP/1.1 response head."""
    known = {item.value: item.phrase for item in HTTPStatus}
    lines = [f"HTTP/1.1 {status} {known.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Connection(asyncio.Protocol):
    """One client connection: parses requests and hands them to the handler in order."""

    def __init__(self, server: WireServer, number: int) -> None:
        """Belong to `server`; `number` tells connections apart in what is recorded."""
        self._server = server
        self._number = number
        self._parser = httptools.HttpRequestParser(self)
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._exchange: Exchange | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._is_ours_to_end = False
        self.lost = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the task that answers."""
        self._transport = cast("asyncio.Transport", transport)
        self._task = asyncio.get_running_loop().create_task(self._serve())
        self._server.joined(self, self._task)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop answering: nobody listens any more."""
        self._note_client_left()
        self._may_write.set()
        if self._task is not None:
            self._task.cancel()
        self._server.left(self)
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what is no HTTP gets 400 and a closed connection."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(501)
        except httptools.HttpParserError:
            self._refuse(400)

    def pause_writing(self) -> None:
        """Let `write` wait: the client reads slowly."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """Let `write` go on."""
        self._may_write.set()

    def on_message_begin(self) -> None:
        """Start a request (httptools)."""
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target (httptools)."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header (httptools)."""
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """Invite the body of a client that waits for it (httptools)."""
        if ("expect", "100-continue") in self._headers and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body (httptools)."""
        self._body += body
        if len(self._body) > MAX_BODY_BYTES:
            self._refuse(413)

    def on_message_complete(self) -> None:
        """Queue the request (httptools)."""
        version = self._parser.get_http_version()
        self._requests.put_nowait(
            Request(
                method=self._parser.get_method().decode("latin-1"),
                target=self._target.decode("latin-1"),
                headers=tuple(self._headers),
                body=bytes(self._body),
                version=version,
                keep_alive=self._parser.should_keep_alive() and version == "1.1",
                connection=self._number,
            )
        )

    async def write(self, data: bytes) -> None:
        """Write and give others a turn, so that each write is a packet of its own.

        Raises:
            ConnectionResetError: the connection is closed.
        """
        await self._may_write.wait()
        if self._transport is None or self._transport.is_closing():
            self._note_client_left()
            raise ConnectionResetError("the client is gone")
        self._transport.write(data)
        await asyncio.sleep(0)

    def close(self, *, reset: bool = False) -> None:
        """Close on our own account: FIN after what was written, or RST."""
        self._is_ours_to_end = True
        if self._transport is None:
            return
        if not reset:
            self._transport.close()
            return
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def drop(self) -> None:
        """Close at once, whatever is still to be written."""
        self._is_ours_to_end = True
        if self._transport is not None:
            self._transport.abort()

    def _note_client_left(self) -> None:
        if self._exchange is not None and not self._is_ours_to_end:
            self._exchange.client_left = True

    def _refuse(self, status: int) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(
                render_head(status, [("connection", "close"), ("content-length", "0")])
            )
            self.close()

    async def _serve(self) -> None:
        while True:
            request = await self._requests.get()
            self._exchange = Exchange(request, self)
            try:
                await self._server.handler(self._exchange)
            except ConnectionResetError:
                return
            except Exception as error:
                self._server.failures.append(error)
                self.drop()
                raise
            self._exchange = None


@dataclass(slots=True)
class WireServer:
    """Listens on one address; `failures` holds what handlers raised by mistake."""

    handler: Handler
    failures: list[Exception] = field(default_factory=list)
    _connections: dict[Connection, asyncio.Task[None]] = field(default_factory=dict)
    _made: int = 0
    _listener: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen; port 0 takes a free one. Returns `http://HOST:PORT`."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._connect, host, port)
        bound_host, bound_port = self._listener.sockets[0].getsockname()[:2]
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        return f"http://{shown}:{bound_port}"

    async def close(self) -> None:
        """Stop listening, drop every connection and wait until their tasks are over."""
        if self._listener is None:
            return
        self._listener.close()
        connections = dict(self._connections)
        for connection in connections:
            connection.drop()
        await asyncio.gather(*connections.values(), return_exceptions=True)
        await asyncio.gather(*(connection.lost.wait() for connection in connections))
        await self._listener.wait_closed()
        self._listener = None

    def joined(self, connection: Connection, task: asyncio.Task[None]) -> None:
        """Remember a connection and its task."""
        self._connections[connection] = task

    def left(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.pop(connection, None)

    def _connect(self) -> Connection:
        self._made += 1
        return Connection(self, self._made)
