"""uvicorn's HTTP protocol with the limits it lacks: size and time of a head, time of a blocked write.

httptools takes heads of any size, uvicorn waits for the rest of one forever, and both answer broken
requests in plain text. Here a half-sent head is cut, a large one refused, and every refusal is an
error in OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from asyncio.events import TimerHandle
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote

import httptools
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from shared.http.asgi import BY_NAME, WHOLE_BODY
from shared.http.cycle import Cycle
from shared.http.errors import ApiError, BadRequest, BodyTimeout, HeadersTooLarge, UrlTooLong
from shared.http.relay import CONNECTION

_PLAIN_PATH = re.compile(rb"/[A-Za-z0-9/._\-]*")  # most are no more than that
_INVALID: ApiError = BadRequest("The request is not valid HTTP.")
_NO_UPGRADE = BadRequest("Upgrades are not taken here. Leave out the header `upgrade`.")
_HEAD_LATE = BodyTimeout("The request's head did not arrive in time.")
_URL_TOO_LONG = UrlTooLong("The request's URL is too long.")
_HEAD_TOO_LARGE = HeadersTooLarge("The request's head is too large.")


class _Refused(Exception):
    """Stops the parser; what to answer stands in the protocol."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection, whose client can neither fill memory nor hold a place for nothing.

    Limits: bytes of a head and of its URL, number of headers, and of requests that wait for the one
    before; seconds for a head to arrive, for a client to read on after the write buffer filled up,
    for it to take a refusal; bytes and seconds of a refused body's rest.
    """

    max_head_bytes = 64 * 1024
    max_url_bytes = 16 * 1024
    max_headers = 256
    max_pipelined = 64
    head_s = 20.0
    write_s = 60.0
    linger_s = 1.0
    max_discarded_bytes = 64 * 1024 * 1024
    discard_s = 10.0

    _head_timer: TimerHandle | None = None
    _write_timer: TimerHandle | None = None
    _idle_timer: TimerHandle | None = None
    _idle_since = 0.0
    _running: RequestResponseCycle | None = None
    _is_in_head = False
    _is_over = False
    _is_lost = False
    _head_bytes = 0
    _piece_bytes = 0
    _body_came = False
    _discard_timer: TimerHandle | None = None
    _discarded = 0
    _refusal = _INVALID

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's
        """Start to wait for the first head."""
        super().connection_made(transport)
        self._watchers: set[Callable[[], None]] = set()
        self._is_in_head = True
        self._head_timer = self.loop.call_later(self.head_s, self._refuse, _HEAD_LATE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers, and tell who watches."""
        self._cancel_timers()
        super().connection_lost(exc)
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = (
                True  # uvicorn tells the newest only, which may still wait its turn
            )
            running.message_event.set()
        self._is_lost = True
        watchers, self._watchers = self._watchers, set()
        for gone in watchers:
            gone()

    def watch(self, gone: Callable[[], None]) -> None:
        """See `Watchable.watch`."""
        if self._is_lost:
            self.loop.call_soon(gone)
        else:
            self._watchers.add(gone)

    def unwatch(self, gone: Callable[[], None]) -> None:
        """See `Watchable.unwatch`."""
        self._watchers.discard(gone)

    def data_received(self, data: bytes) -> None:
        """Parse what came; a head that is not complete must not grow without end."""
        if self._is_over:
            return  # what a refused client still sends
        self._body_came = False
        self._piece_bytes = len(data)
        super().data_received(data)
        self.piece_parsed()
        cycle = self.cycle
        if (
            not self._is_in_head
            and not self._body_came
            and cycle is not None
            and cycle.more_body
            and not self._is_over
        ):
            self._head_bytes += len(data)  # trailers and chunk extensions, which are nobody's body
            if self._head_bytes > self.max_head_bytes:
                self._is_in_head = True
                self._refuse(_HEAD_TOO_LARGE)
                return
        if cycle is not None and cycle.response_complete and cycle.more_body:
            self._discard(len(data))
        if not self._is_in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > self.max_head_bytes:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self._refuse, _HEAD_LATE)

    def _new_cycle(self, scope: Scope, *, keep_alive: bool, expects_100: bool) -> Cycle:
        return Cycle(
            scope=scope,  # type: ignore[arg-type] # with keys of ours
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=expects_100,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )

    def begin(self, cycle: Cycle) -> None:
        """Serve a request, of which the head is here, now that its turn has come."""
        self.serve_by_task(cycle)

    def serve_by_task(self, cycle: Cycle) -> None:
        """Have the application serve a request."""
        cycle.scope[WHOLE_BODY] = cycle.whole_body  # type: ignore[literal-required] # a key of ours
        self._start_asgi_task(cycle, self.app)

    def piece_parsed(self) -> None:
        """Be told that a piece of what the client sends was parsed."""

    def _discard(self, size: int) -> None:
        """Let a client finish a body that was refused, so that it reads the answer; to a limit."""
        self._discarded += size
        if self._discarded > self.max_discarded_bytes:
            self.transport.close()
        elif self._discard_timer is None:
            self._discard_timer = self.loop.call_later(self.discard_s, self.transport.close)

    def on_message_begin(self) -> None:
        """Start to count a head."""
        self.url = b""
        self.headers = []
        self._is_in_head = True
        self._head_bytes = self._discarded = 0
        if self._discard_timer is not None:
            self._discard_timer.cancel()
            self._discard_timer = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers are passed over."""
        if self._is_in_head:
            self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._body_came = True
        self._head_bytes = 0
        super().on_body(body)

    def on_url(self, url: bytes) -> None:
        """Take a piece of the URL."""
        super().on_url(url)
        if len(self.url) > self.max_url_bytes:
            raise self._refused(_URL_TOO_LONG)

    def on_headers_complete(self) -> None:
        """Judge the head, then serve the request."""
        self._is_in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if self.parser.should_upgrade():
            # the parser would take the body for another request
            self._refusal = _NO_UPGRADE
            raise _Refused
        headers = self.headers
        if len(headers) > self.max_headers or self._is_head_large():
            raise self._refused(_HEAD_TOO_LARGE)
        by_name = dict(reversed(headers))
        self.expect_100_continue = by_name.get(b"expect", b"").lower() == b"100-continue"
        if b"transfer-encoding" in by_name:
            # llhttp lets other codings pass before the last, which a server in front may read otherwise
            codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
            if codings != [b"chunked"]:
                raise _Refused
        self._serve_request(by_name)

    def _is_head_large(self) -> bool:
        """Tell whether it is over the limit; what came with it of the body does not count."""
        if self._head_bytes + self._piece_bytes <= self.max_head_bytes:
            return False
        return sum(len(name) + len(value) for name, value in self.headers) > self.max_head_bytes

    def _scope(self, by_name: dict[bytes, bytes]) -> dict[str, Any]:
        """Return the request's scope (ASGI)."""
        raw_path, query = self.url, b""
        if _PLAIN_PATH.fullmatch(raw_path) is None:
            url = httptools.parse_url(raw_path)
            raw_path, query = url.path, url.query or b""
        path = raw_path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": self.parser.get_http_version(),
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "method": self.parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            BY_NAME: by_name,
            CONNECTION: self,
        }

    def _serve_request(self, by_name: dict[bytes, bytes]) -> None:
        """Start to serve the request, or let it wait for the one before (as uvicorn's method does)."""
        if len(self.pipeline) >= self.max_pipelined:
            raise _Refused  # those before are answered; a piece may hold thousands
        scope = self._scope(by_name)
        version = scope["http_version"]
        before = self.cycle
        keep_alive = version != "1.0" and self.parser.should_keep_alive()
        # RFC 9110, 10.1.1: an older client must not get a 100
        expects_100 = version == "1.1" and self.expect_100_continue
        self.cycle = cycle = self._new_cycle(scope, keep_alive=keep_alive, expects_100=expects_100)
        if before is None or before.response_complete:
            self._running = cycle
            self.begin(cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_response_complete(self) -> None:
        """Begin with the next request, or close behind the last one before a refusal.

        uvicorn arms a timer after each answer; here one looks from time to time.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._close()
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, _ = self.pipeline.pop()
            self._running = cycle
            self.serve_by_task(cast("Cycle", cycle))
            return
        if self._is_over:
            self.transport.close()
            return
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_idle)

    def _close_idle(self) -> None:
        """Close a connection on which nothing happens; look again later at one that is in use."""
        self._idle_timer = None
        if self.transport.is_closing():
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        is_busy = not self.cycle.response_complete or (self._is_in_head and self._head_bytes > 0)
        if is_busy or left > 0:
            again_s = self.timeout_keep_alive if is_busy else left
            self._idle_timer = self.loop.call_later(again_s, self._close_idle)
        else:
            self._close()

    def _close(self) -> None:
        """Close once all is sent; a client that does not read on is cut."""
        self.transport.close()
        if self._write_timer is None and not self._is_lost:
            self._write_timer = self.loop.call_later(self.write_s, self.transport.abort)

    def pause_writing(self) -> None:
        """Give a client that does not read a while, then cut it."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        if self._write_timer is not None and not self.transport.is_closing():
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer in the envelope instead of uvicorn's text, and close.

        Requests that came whole before are answered first, and nothing behind them.
        """
        self._is_over = True
        cycle = self.cycle
        if cycle is not None and cycle.response_complete and cycle.more_body:
            self._close()  # it has its answer: a second one would be taken for the next request's
            return
        if cycle is not None and cycle.more_body and self.pipeline:
            self.pipeline.popleft()  # it is the broken one, and waits for its turn
            return
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body or cycle.response_started:
                return
            # it is refused: what serves it shall stop, and not answer behind the refusal
            cycle.disconnected = True
            cycle.message_event.set()
        refusal = self._refusal
        body = refusal.body()
        headers = [
            *refusal.response_headers(),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"x-request-id", b"req_" + secrets.token_hex(12).encode()),
        ]
        head = b"".join(b"%s: %s\r\n" % pair for pair in headers)
        self.transport.write(STATUS_LINE[refusal.status] + head + b"\r\n" + body)
        # closing at once would reset the connection under what the client still sends, and with it
        # the answer
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(self.linger_s, self.transport.close)

    def _refused(self, refusal: ApiError) -> _Refused:
        self._refusal = refusal
        return _Refused()

    def _refuse(self, refusal: ApiError) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        if not self._is_over and not self.transport.is_closing():
            self._refused(refusal)
            self.send_400_response("")

    def _cancel_timers(self) -> None:
        for timer in (self._head_timer, self._write_timer, self._discard_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = self._discard_timer = self._idle_timer = None
