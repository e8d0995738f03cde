"""One HTTP/1.1 connection to an upstream, and the answer that is being read from it.

A connection serves one exchange at a time. Whoever runs the exchange calls `begin`, writes, and then
alternates between looking at what is here (`pieces`, `is_complete`, `error`) and waiting for `news`.
There is no task and no timer per exchange: the loop calls in with bytes, and one timer per
connection is armed no more often than it has to be.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import cast

import httptools

from shared.http.errors import ApiError, UpstreamFailed, UpstreamInterrupted, UpstreamTimeout
from shared.http.lean_head import MAX_HEAD_BYTES, check_size, framing_of
from shared.http.transport import Timeouts

# 100, 102 and 103 before the answer; more than this is no upstream that means it.
_MAX_INTERIM = 16
# What may wait unread; more stays in the socket, so that the upstream feels a slow client.
_UNREAD_BYTES = 256 * 1024
_SLICE_BYTES = 256 * 1024
_NEVER = math.inf
_NO_ANSWER = "The upstream closed the connection before it answered."


class LeanConnection(asyncio.Protocol):
    """Parses one answer after another; `on_lost` is called once, when the connection is gone.

    `is_full`: no more is read until `take`. `listener` is called in place of a task that waits.
    """

    __slots__ = (
        "_deadline",
        "_head_bytes",
        "_idle_s",
        "_interim",
        "_is_between_chunks",
        "_is_head_only",
        "_is_until_eof",
        "_is_writing_paused",
        "_loop",
        "_on_lost",
        "_parser",
        "_timer",
        "_timer_at",
        "_total_at",
        "_transport",
        "_unread",
        "_waiter",
        "encoding",
        "error",
        "has_head",
        "headers",
        "idle_since",
        "is_closed",
        "is_complete",
        "is_full",
        "is_heard",
        "is_idle",
        "is_reusable",
        "listener",
        "pieces",
        "status",
        "tap",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[LeanConnection], None]
    ) -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER
        self._waiter: asyncio.Future[None] | None = None
        self.listener: Callable[[], None] | None = None
        self._is_writing_paused = self.is_closed = self.is_full = False
        # gets what comes between two chunks, and takes it if that is one whole chunk of the kind it knows
        self.tap: Callable[[bytes], bool] | None = None
        self.is_idle = True  # nothing was asked yet
        self.idle_since = 0.0
        self._deadline = self._total_at = _NEVER
        self._idle_s = _NEVER
        self._reset(is_head_only=False)

    def _reset(self, *, is_head_only: bool) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.encoding: bytes | None = None
        self.error: ApiError | None = None
        self.is_heard = self.has_head = self.is_complete = self.is_reusable = False
        self._is_head_only = is_head_only
        self._is_until_eof = self._is_between_chunks = False
        self._head_bytes = self._interim = self._unread = 0

    # what the exchange calls

    def begin(self, limits: Timeouts, total_at: float, *, is_head_only: bool) -> None:
        """Start an exchange: its answer is read from here on, within its limits."""
        self._reset(is_head_only=is_head_only)
        self.is_idle = False
        if self.is_closed:
            self.error = UpstreamInterrupted(_NO_ANSWER)
        self._idle_s = limits.idle_s
        self._total_at = total_at
        now = self._loop.time()
        self._deadline = min(now + limits.first_byte_s, total_at)
        # Armed for the shortest of the limits, the timer is always in time for the one in force: it
        # looks, and sleeps again.
        at = min(self._deadline, now + limits.idle_s)
        if at < self._timer_at:
            self._arm(at)

    def write(self, data: bytes) -> None:
        """Send bytes that are small enough to be sent at once."""
        self._transport.write(data)

    def write_both(self, head: bytes, body: bytes) -> None:
        """Send two pieces without copying them into one."""
        self._transport.writelines((head, body))

    async def upload(self, body: bytes) -> None:
        """Send a large body at the pace of the upstream.

        It is given up when the upstream answers with anything but a success before it is sent.
        """
        view = memoryview(body)
        for start in range(0, len(view), _SLICE_BYTES):
            while self._is_writing_paused and not self._is_refused():
                await self.news()
            if self._is_refused():
                return
            self._transport.write(view[start : start + _SLICE_BYTES])

    def _is_refused(self) -> bool:
        # the rest of the body will not be sent, so nothing else may be sent on this connection
        if self.error is None and not self.is_closed and not (self.has_head and self.status >= 300):
            return False
        self.is_closed = True
        return True

    def news(self) -> asyncio.Future[None]:
        """Return a future that is done when something happens; there is one who waits at a time."""
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def take(self) -> bytes:
        """Return all that is here of the body; there is something."""
        pieces = self.pieces
        taken = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._unread = 0
        if self.is_full:
            self.is_full = False
            # what lay in the socket meanwhile is no pause of the upstream
            self._deadline = min(self._loop.time() + self._idle_s, self._total_at)
            self._transport.resume_reading()
        return taken

    def rest(self, now: float) -> None:
        """Become idle after an exchange that ended well."""
        self.is_idle = True
        self.idle_since = now
        if self.pieces:
            self.take()

    def abort(self) -> None:
        """Close at once, if there is anything to close; whoever waits learns of it."""
        self.is_closed = True
        transport: asyncio.Transport | None = getattr(self, "_transport", None)
        if transport is not None:
            transport.abort()

    def peer_address(self) -> str:
        """Return the IP address on the far side; empty if it is gone already."""
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""

    @property
    def transport(self) -> asyncio.Transport:
        """Return what the bytes go through."""
        return self._transport

    @transport.setter
    def transport(self, transport: asyncio.Transport) -> None:
        """Put TLS in between."""
        self._transport = transport

    # what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio)."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came (asyncio)."""
        if self.is_idle or self.error is not None:
            self.abort()  # nobody asked
            return
        tap = self.tap
        if tap is not None and self._is_between_chunks and tap(data):
            self._head_bytes = 0
            self._deadline = min(self._loop.time() + self._idle_s, self._total_at)
            return
        self.is_heard = True
        had = len(self.pieces)
        if not self.has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._take_broken(exc)
        # behind the last chunk the next one's size may have begun
        self._is_between_chunks = self._is_between_chunks and data.endswith(b"\r\n")
        if not self.has_head:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._fail(UpstreamFailed("The head of the upstream's answer is too large."))
            return
        if len(self.pieces) > had:
            self._head_bytes = 0
        else:
            self._weigh_rest(len(data))
        if self.pieces and not self.is_complete:
            self._deadline = min(self._loop.time() + self._idle_s, self._total_at)
            self._unread += len(data)
            if self._unread > _UNREAD_BYTES and not self.is_full:
                self._pause()
        self.wake()

    def eof_received(self) -> None:
        """Take the upstream's end of the connection (asyncio), which closes it then."""
        self._lose(is_orderly=True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let whoever waits know, and the pool (asyncio)."""
        self._lose(is_orderly=False)
        self._transport.abort()  # Python 3.10 takes TLS that the far side closed for unclosed
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._on_lost(self)

    def pause_writing(self) -> None:
        """Let `upload` wait (asyncio)."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """Let `upload` go on (asyncio)."""
        self._is_writing_paused = False
        self.wake()

    # what the parser calls

    def on_message_begin(self) -> None:
        """Refuse what nobody asked for (httptools)."""
        if self.is_complete:
            raise _ExtraBytes

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header (httptools); trailers are passed over."""
        if not self.has_head:
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge the head (httptools)."""
        status = self._parser.get_status_code()
        if status < 200:
            self._pass_over(status)
            return
        self._head_bytes = check_size(self.headers, self._head_bytes)
        is_framed, self.encoding = framing_of(self.headers)
        self.status = status
        self.has_head = True
        if self._is_head_only:
            # the parser takes what follows for the body that a GET would get
            self.is_complete = True
            raise _ExtraBytes
        self._is_until_eof = not is_framed and status not in {204, 304}
        self.is_reusable = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body (httptools)."""
        self.pieces.append(body)

    def on_chunk_header(self) -> None:
        """Note that a chunk begins: its size is here (httptools)."""
        self._is_between_chunks = False

    def on_chunk_complete(self) -> None:
        """Note that a chunk is over, with the line end behind it (httptools)."""
        self._is_between_chunks = True

    def on_message_complete(self) -> None:
        """Note the end of the answer (httptools)."""
        if self.has_head:
            self.is_complete = True

    def _pass_over(self, status: int) -> None:
        self._interim += 1
        if status < 100 or status == 101 or self._interim > _MAX_INTERIM:
            raise UpstreamFailed("The upstream's answer has a status that nobody asked for.")
        self.headers = []

    def _weigh_rest(self, size: int) -> None:
        """Count what brings no body: trailers and chunk extensions, which may have no end."""
        if self.is_complete or self.error is not None:
            return
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._fail(UpstreamInterrupted("The upstream broke off its answer."))

    # how it ends

    def _take_broken(self, exc: httptools.HttpParserError) -> None:
        if self.is_complete:
            self.is_reusable = False  # more than was asked for: the answer itself is whole
        elif self.has_head:
            self._fail(UpstreamInterrupted("The upstream broke off its answer."))
        elif isinstance(exc.__context__, ApiError):
            self._fail(exc.__context__)
        else:
            self._fail(UpstreamFailed("The upstream's answer is not valid HTTP."))

    def _fail(self, error: ApiError) -> None:
        self.error = error
        self.is_reusable = False
        self.abort()
        self.wake()

    def _lose(self, *, is_orderly: bool) -> None:
        self.is_closed = True
        self._is_writing_paused = False
        if not self.is_idle and not self.is_complete and self.error is None:
            if is_orderly and self._is_until_eof:
                self.is_complete = True
            elif self.has_head:
                self.error = UpstreamInterrupted("The upstream broke off its answer.")
            else:
                self.error = UpstreamInterrupted(_NO_ANSWER)
        self.wake()

    def _pause(self) -> None:
        if not self.is_closed:
            self.is_full = True
            self._transport.pause_reading()

    def wake(self) -> None:
        """Let whoever waits for news, or listens to it, look around."""
        if self.listener is not None:
            self.listener()
            return
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    # the one timer

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._look_at_the_time)

    def _look_at_the_time(self) -> None:
        self._timer = None
        self._timer_at = _NEVER
        now = self._loop.time()
        if self.is_idle or self.is_complete or self.error is not None:
            return
        if self._deadline <= now < self._total_at and self.pieces:
            # it is the reader who pauses
            self._deadline = min(now + self._idle_s, self._total_at)
        if self._deadline > now:
            self._arm(min(self._deadline, now + self._idle_s))
        elif self.has_head:
            self._fail(UpstreamTimeout("The upstream stopped sending its answer."))
        else:
            self._fail(UpstreamTimeout("The upstream did not answer in time."))


class _ExtraBytes(Exception):
    """Stops the parser: the answer is complete."""
