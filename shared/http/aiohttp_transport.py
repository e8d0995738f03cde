"""The transport on aiohttp's client."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import aiohttp

from shared.http.errors import (
    ApiError,
    UpstreamFailed,
    UpstreamInterrupted,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from shared.http.transport import InboundResponse, OutboundRequest

# Below the 5 s after which llama.cpp, uvicorn and others close idle connections, so that a request
# seldom meets a connection that is just being closed.
_KEEPALIVE_S = 4.0
# How long a finished stream may take to send its last, empty chunk before its connection is given up.
_TAIL_S = 0.05
_WHOLE_BYTES = 512 * 1024
_NO_AUTO_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class AiohttpTransport:
    """Upstream calls through one aiohttp session, made on first use inside the running loop."""

    def __init__(self, *, allow_address: Callable[[str], bool] | None = None) -> None:
        """Connect nowhere yet; `allow_address` is as `LeanTransport` takes it."""
        self._allow_address = allow_address
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def open(self, request: OutboundRequest) -> AsyncIterator[InboundResponse]:
        """See `Transport.open`."""
        response = await self._send(request)
        try:
            with _told_of_its_end(response):
                yield _Response(response, request.timeouts.idle_s)
        finally:
            # close() drops the connection at once; it is kept only when the body was read whole
            if not response.content.at_eof():
                response.close()
            else:
                response.release()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(self, request: OutboundRequest) -> aiohttp.ClientResponse:
        limits, body = request.timeouts, request.body or b""
        try:
            return await self._open_session().request(
                request.method,
                request.url,
                headers=(*request.headers, ("accept-encoding", "identity")),
                # a large body is sent in pieces, so that other requests get their turn
                data=io.BytesIO(body) if len(body) > _WHOLE_BYTES else body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=limits.total_s, connect=limits.connect_s, sock_read=limits.first_byte_s
                ),
                skip_auto_headers=_NO_AUTO_HEADERS,
            )
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as exc:
            raise _translated(exc) from exc

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    limit_per_host=0,
                    keepalive_timeout=_KEEPALIVE_S,
                    socket_factory=self._socket,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                read_bufsize=64 * 1024,
            )
        return self._session

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Make a socket for a resolved address, which is the one that is connected to."""
        family, kind, protocol, _, address = info
        if self._allow_address is not None and not self._allow_address(str(address[0])):
            raise PermissionError("the address is not allowed")
        return socket.socket(family, kind, protocol)


class _Response:
    def __init__(self, response: aiohttp.ClientResponse, idle_s: float) -> None:
        self._response = response
        self._idle_s = idle_s
        self._has_begun = False

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        return self._response.raw_headers

    async def read(self) -> bytes:
        """See `InboundResponse.read`."""
        try:
            piece = await self._response.content.readany()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as exc:
            if isinstance(exc, asyncio.TimeoutError):
                raise UpstreamTimeout("The upstream stopped sending its answer.") from exc
            raise UpstreamInterrupted("The upstream broke off its answer.") from exc
        if not self._has_begun:
            self._has_begun = True
            self._limit_idle_time()
        return piece

    async def finish(self) -> None:
        """Read the empty rest of a stream that said it is done, so that its connection is kept."""
        try:
            await asyncio.wait_for(self._response.content.readany(), _TAIL_S)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return

    def _limit_idle_time(self) -> None:
        # the connection is gone already when the whole body came with the first chunk
        connection = self._response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.read_timeout = self._idle_s
            connection.protocol.start_timeout()  # the time until the next chunk counts already


@contextmanager
def _told_of_its_end(response: aiohttp.ClientResponse) -> Iterator[None]:
    """Let whoever reads the body learn that the connection is gone.

    When chunks are framed wrongly, aiohttp (3.14, with its C parser) closes the connection and
    stops its timer, but does not wake the reader: it would wait for ever.
    """
    content = response.content

    def wake(_closed: asyncio.Future[None] | None) -> None:
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the connection is gone"))

    protocol = response.connection.protocol if response.connection is not None else None
    closed = protocol.closed if protocol is not None else None
    if closed is None:
        wake(None)
        yield
        return
    closed.remove_done_callback(_take_error)
    closed.add_done_callback(_take_error)
    closed.add_done_callback(wake)
    try:
        yield
    finally:
        closed.remove_done_callback(wake)


def _take_error(closed: asyncio.Future[None]) -> None:
    if not closed.cancelled():
        closed.exception()  # else asyncio logs that nobody asked for it


def _translated(exc: BaseException) -> ApiError:
    if isinstance(exc, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return UpstreamUnreachable("The upstream could not be reached.")
    if isinstance(exc, asyncio.TimeoutError):
        return UpstreamTimeout("The upstream did not answer in time.")
    if isinstance(exc, (aiohttp.InvalidURL, aiohttp.ClientResponseError, ValueError)):
        return UpstreamFailed("The upstream's answer is not valid HTTP.")
    return UpstreamInterrupted("The upstream closed the connection before it answered.")
