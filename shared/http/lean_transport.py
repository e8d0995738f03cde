"""The transport on a client of our own: asyncio's protocols and httptools' parser, and no more.

Why: docs/decisions/0007-a-lean-http-client.md. Heads are rendered in `lean_request`, connections are
made in `lean_dialer` and read in `lean_connection`; here they are kept and handed out.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from shared.http.errors import (
    ApiError,
    StaleConnection,
    UpstreamInterrupted,
    UpstreamUnreachable,
)
from shared.http.lean_connection import LeanConnection
from shared.http.lean_decoding import Decoder
from shared.http.lean_dialer import Dialer
from shared.http.lean_kept import KeptConnection
from shared.http.lean_request import Requests, Target
from shared.http.transport import InboundResponse, OutboundRequest

# Below the 5 s after which llama.cpp, uvicorn and others close idle connections, so that a request
# seldom meets a connection that is just being closed.
_KEEPALIVE_S = 4.0
_SWEEP_S = 2.0
# How long a finished stream may take to send its last, empty chunk before its connection is given up.
_TAIL_S = 0.05
# A kept connection that closes this soon after a request was written was most likely being closed
# when it was taken. Later than that the upstream had the request and what became of it is its doing.
_RACE_S = 0.25
# Up to the first a body is copied behind its head, up to the second it is handed over in one go.
_JOINED_BYTES = 64 * 1024
_WHOLE_BYTES = 512 * 1024
# Turns of the loop in which aborted connections, TLS and all, tell that they are gone.
_TURNS_TO_CLOSE = 4


class LeanTransport:
    """Upstream calls over kept connections, last used first; belongs to the loop it is used in."""

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        allow_address: Callable[[str], bool] | None = None,
    ) -> None:
        """Connect nowhere yet.

        Args:
            ssl_context: for https; the system's certificates are trusted without one.
            allow_address: told the IP address of each new connection before anything is sent, as
                the system shows it (an IPv4 address may come mapped into IPv6); False closes it.
        """
        self._dialer = Dialer(ssl_context=ssl_context, allow_address=allow_address)
        self._requests = Requests()
        self._idle: dict[str, list[KeptConnection]] = {}
        self._connections: set[KeptConnection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closings = 0
        # kept, since asking for it is a system call up to Python 3.11
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, request: OutboundRequest) -> AbstractAsyncContextManager[InboundResponse]:
        """See `Transport.open`."""
        return LeanExchange(self, request)

    def send_now(self, request: OutboundRequest) -> LeanExchange | None:
        """Send a request on a kept connection; its answer is for the caller to wait for.

        Enter what is returned to go on as if it had been opened; else `release` it, or abort its connection.
        None: there is no such connection, or the body is too long to be sent in one go.

        Raises:
            UpstreamFailed: the request can't be sent.
        """
        if request.body is not None and len(request.body) > _WHOLE_BYTES:
            return None
        exchange = LeanExchange(self, request)
        return exchange if exchange.send_now() else None

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._idle.clear()
        self._closings += 1
        for connection in list(self._connections):
            connection.abort()
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)

    # what exchanges call

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that this transport belongs to."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def prepared(self, request: OutboundRequest) -> tuple[Target, bytes]:
        """Return where a request goes and its head, or raise `UpstreamFailed`."""
        target = self._requests.target(request.method, request.url)
        body = request.body
        length = len(body) if body else _length_of_nothing(request.method)
        return target, self._requests.head(target, request.headers, length)

    def kept(self, target: Target, now: float) -> KeptConnection | None:
        """Return the connection that was idle for the shortest time, if any is fresh enough."""
        idle = self._idle.get(target.origin)
        while idle:
            connection = idle.pop()
            if not connection.is_closed and now - connection.idle_since < _KEEPALIVE_S:
                return connection
            connection.abort()
        return None

    def close_idle(self, target: Target) -> None:
        """Close the kept connections to a target, which are no better than the one that was stale."""
        for connection in self._idle.pop(target.origin, ()):
            connection.abort()

    async def dialled(
        self, target: Target, request: OutboundRequest, total_at: float
    ) -> KeptConnection:
        """Return a new connection, or raise as `Dialer.dial` does."""
        closings = self._closings
        connection = await self._dialer.dial(
            target, self._forget, connect_s=request.timeouts.connect_s, total_at=total_at
        )
        if closings != self._closings:
            connection.abort()
            raise UpstreamUnreachable("The service stops, and makes no more connections.")
        if not connection.is_closed:
            self._connections.add(connection)
        return connection

    def keep(self, target: Target, connection: KeptConnection) -> None:
        """Take back a connection whose exchange is over; close it if it can't be used again."""
        if not connection.is_complete or not connection.is_reusable or connection.is_closed:
            connection.abort()
            return
        loop = self.loop()
        connection.rest(loop.time())
        idle = self._idle.get(target.origin)
        if idle is None:
            self._idle[target.origin] = [connection]
        else:
            idle.append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_S, self._sweep)

    def _forget(self, connection: LeanConnection) -> None:
        self._connections.discard(connection)
        if connection.is_idle:
            for idle in self._idle.values():
                if connection in idle:
                    idle.remove(connection)

    def _sweep(self) -> None:
        """Close what was idle for too long; run only while something is idle."""
        loop = self.loop()
        stale = loop.time() - _KEEPALIVE_S
        for origin, idle in list(self._idle.items()):
            while idle and idle[0].idle_since <= stale:
                idle.pop(0).abort()
            if not idle:
                del self._idle[origin]
        self._sweeper = loop.call_later(_SWEEP_S, self._sweep) if self._idle else None


class LeanExchange:
    """A request and, once entered, the answer to it."""

    __slots__ = (
        "_asked",
        "_asked_at",
        "_connection",
        "_decoder",
        "_is_kept",
        "_is_late",
        "_request",
        "_target",
        "_transport",
        "headers",
        "status",
    )

    def __init__(self, transport: LeanTransport, request: OutboundRequest) -> None:
        self._transport = transport
        self._request = request
        self._target: Target
        self._asked: KeptConnection | None = None
        self._asked_at = 0.0
        self._is_kept = False
        self._connection: KeptConnection | None = None
        self._decoder: Decoder | None = None
        self._is_late = False
        self.status = 0
        self.headers: Sequence[tuple[bytes, bytes]] = ()

    async def __aenter__(self) -> InboundResponse:
        """Send the request unless that was done, and wait for the head of the answer."""
        transport = self._transport
        connection = self._asked
        error = await (self._ask() if connection is None else self._head_of(connection))
        connection = self.connection
        if error is not None:
            after_s = transport.loop().time() - self._asked_at
            if self._is_kept and _has_crossed(connection, after_s):
                transport.close_idle(self._target)
                raise StaleConnection("The upstream closed its idle connection.") from error
            raise error.fresh()
        self._connection = connection
        self.status = connection.status
        self.headers = connection.headers
        return self

    def send_now(self) -> bool:
        """See `LeanTransport.send_now`; tell whether it was sent."""
        connection, head, total_at = self._prepare()
        if connection is None:
            return False
        self._send(connection, head, total_at)
        return True

    @property
    def connection(self) -> KeptConnection:
        """Return what the request was sent on."""
        assert self._asked is not None  # noqa: S101 - it was sent
        return self._asked

    def release(self) -> None:
        """Give back the connection of an exchange that was never entered."""
        self._transport.keep(self._target, self.connection)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keep the connection if the answer is here whole, close it otherwise."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.keep(self._target, connection)

    async def read(self) -> bytes:
        """See `InboundResponse.read`."""
        connection = self._entered()
        if connection.encoding is not None:
            return await self._read_decoded(connection, connection.encoding)
        while not connection.pieces:
            if connection.is_complete:
                return b""
            if connection.error is not None:
                raise connection.error.fresh()
            await connection.news()
        return connection.take()

    def plain(self) -> LeanConnection | None:
        """Return the connection, if its pieces are the body as it is."""
        connection = self._entered()
        return connection if connection.encoding is None else None

    async def finish(self) -> None:
        """Wait a moment for the empty rest of a stream that said it is done: see `keep`."""
        connection = self._entered()
        if connection.is_complete or connection.error is not None:
            return
        timer = self._transport.loop().call_later(_TAIL_S, self._give_up, connection)
        try:
            while not (connection.is_complete or connection.error is not None or self._is_late):
                await connection.news()
                if connection.pieces:
                    connection.take()
        finally:
            timer.cancel()

    def _give_up(self, connection: KeptConnection) -> None:
        self._is_late = True
        connection.wake()

    def _entered(self) -> KeptConnection:
        if self._connection is None:
            raise RuntimeError("the answer is read outside of its context")
        return self._connection

    async def _ask(self) -> ApiError | None:
        """Send the request, return when the answer's head is here, or what came instead of it."""
        connection, head, total_at = self._prepare()
        if connection is None:
            connection = await self._transport.dialled(self._target, self._request, total_at)
        if not self._send(connection, head, total_at):
            try:
                await connection.upload(self._request.body or b"")
            except BaseException:
                connection.abort()
                raise
        return await self._head_of(connection)

    def _prepare(self) -> tuple[KeptConnection | None, bytes, float]:
        """Return a kept connection if there is one, the request's head, and when all has to be over."""
        transport, request = self._transport, self._request
        self._target, head = transport.prepared(request)
        self._asked_at = now = transport.loop().time()
        connection = transport.kept(self._target, now)
        self._is_kept = connection is not None
        total_s = request.timeouts.total_s
        return connection, head, math.inf if total_s is None else now + total_s

    def _send(self, connection: KeptConnection, head: bytes, total_at: float) -> bool:
        """Send head and body, or of a long body the head only; tell whether nothing is left to send."""
        request = self._request
        body = request.body or b""
        size = len(body)
        self._asked = connection
        try:
            connection.begin(request.timeouts, total_at, is_head_only=self._target.is_head)
            if connection.error is not None:  # it closed as it was made; uvloop raises on a write
                return True
            if size <= _JOINED_BYTES:
                connection.write(head + body)
            elif size <= _WHOLE_BYTES:
                connection.write_both(head, body)
            else:
                connection.write(head)
        except BaseException:
            connection.abort()
            raise
        return size <= _WHOLE_BYTES

    async def _head_of(self, connection: KeptConnection) -> ApiError | None:
        """Wait for the answer's head; return what came instead of it."""
        try:
            while not connection.has_head and connection.error is None:
                await connection.news()
        except BaseException:
            connection.abort()
            raise
        return None if connection.has_head else connection.error

    async def _read_decoded(self, connection: KeptConnection, encoding: bytes) -> bytes:
        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = Decoder(encoding)
        while True:
            if decoder.has_more or connection.pieces:
                piece = decoder.feed(b"" if decoder.has_more else connection.take())
                if piece:
                    return piece
            elif connection.is_complete:
                return decoder.last()
            elif connection.error is not None:
                raise connection.error.fresh()
            else:
                await connection.news()


def plain_connection(response: InboundResponse) -> LeanConnection | None:
    """Return the connection that an answer is read from, if it is one of ours and nothing is to decode.

    Who takes its pieces has to be done with it before the answer's context is left.
    """
    return response.plain() if isinstance(response, LeanExchange) else None


def _has_crossed(connection: LeanConnection, after_s: float) -> bool:
    """Tell whether a request met a kept connection that the upstream was just closing.

    Most likely such a request was never read (RFC 9112, 9.3.1), but nobody can be sure: whether it
    is sent again is for the caller to say, who counts it.
    """
    is_closed = isinstance(connection.error, UpstreamInterrupted)
    return is_closed and not connection.is_heard and after_s < _RACE_S


def _length_of_nothing(method: str) -> int | None:
    return 0 if method in {"POST", "PUT", "PATCH"} else None
