"""The sending half of one request on uvicorn's server: uvicorn's own, without what costs most.

A head is checked and rendered in one go and leaves together with what follows it, in one write.
"""

from __future__ import annotations

import asyncio
from asyncio.events import Handle
from collections.abc import Iterable, Sequence

from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from shared.http.asgi import WHOLE_BODY

# Up to this a body is copied behind its head, which is cheaper than a write of its own.
_JOINED_BYTES = 64 * 1024
_NO_BODY = frozenset({204, 304})
_LINE = b"%b: %b\r\n".__mod__
# RFC 9110, 5.5: in a header's value they would end it, or worse
_CONTROLS = bytes(code for code in (*range(0x20), 0x7F) if code != 0x09)


class Cycle(RequestResponseCycle):
    """Sends one answer. As ASGI asks, headers' names come in lower case."""

    _head: bytes = b""
    _ends_with_connection = False
    _flushing: Handle | None = None

    def whole_body(self) -> bytes | None:
        """Return the request's body if all of it is here and nobody took it; None: ask `receive`."""
        if self.more_body or self.disconnected or self.response_started:
            return None
        body, self.body = bytes(self.body), bytearray()
        self.flow.resume_reading()
        return body

    async def send(self, message: Message) -> None:  # type: ignore[override] # the same, by its other name
        """Take the next message of an answer (ASGI)."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started and kind == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        elif self.response_started and not self.response_complete and kind == "http.response.body":
            self._go_on(message.get("body", b""), is_last=not message.get("more_body", False))
        else:
            raise RuntimeError(f"the message {kind!r} is out of turn")

    def respond(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer at once, without waiting for a client that does not read: ask `flow` before.

        Raises:
            RuntimeError: a header can't be sent; nothing was.
        """
        lines = [
            STATUS_LINE[status],
            *map(_LINE, self.default_headers),
            *map(_LINE, headers),
            b"content-length: %d\r\n" % len(body),
        ]
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        head = _checked(lines)
        self.response_started = True
        if len(body) <= _JOINED_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))
        self._end()

    def push(self, body: bytes) -> None:
        """Send a piece of the body of an answer that has started; the caller heeds `flow`."""
        if self.disconnected or not body:  # an empty chunk would be the last
            return
        if not self.response_started or self.response_complete:
            raise RuntimeError("a piece of the body is out of turn")
        if self.chunked_encoding and not self._head:
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        else:
            self._go_on(body, is_last=False)

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        if self.waiting_for_100_continue:
            self.keep_alive = False  # the body that was not asked for may follow, or not
            self.waiting_for_100_continue = False
        sent = (*self.default_headers, *headers)
        lines = [STATUS_LINE[status], *map(_LINE, sent)]
        by_name = dict(sent)
        length = by_name.get(b"content-length")
        if length is not None:
            self.expected_content_length = int(length)
            self.chunked_encoding = False
        if by_name.get(b"connection", b"").lower() == b"close":
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if (
            self.chunked_encoding is None
            and self.scope["method"] != "HEAD"
            and status not in _NO_BODY
        ):
            if self.scope["http_version"] == "1.1":
                self.chunked_encoding = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:  # RFC 9112, 6.1: older clients know no chunks
                self._ends_with_connection = True
        try:
            self._head = _checked(lines)
        except RuntimeError:
            self.response_started = False
            raise
        self._flushing = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send the head alone: what follows it takes its time."""
        head, self._head = self._head, b""
        if head and not self.transport.is_closing():
            self.transport.write(head)

    def _go_on(self, body: bytes, *, is_last: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            body = _chunked(body, is_last=is_last)
        elif not self._ends_with_connection:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the answer's body is longer than its content-length")
        if self._head and len(body) <= _JOINED_BYTES:
            body = self._head + body
            self._head = b""
            if self._flushing is not None:
                self._flushing.cancel()
        elif self._head:
            self._flush()
        if body:
            self.transport.write(body)
        if is_last:
            self._end()

    def _end(self) -> None:
        if self.expected_content_length:
            raise RuntimeError("the answer's body is shorter than its content-length")
        self.response_complete = True
        self.scope.pop(WHOLE_BODY, None)  # type: ignore[misc] # it leads back here
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def _checked(lines: Sequence[bytes]) -> bytes:
    head = b"".join(lines)
    # each line has the two that end it, and nothing may have more
    if len(head.translate(None, _CONTROLS)) != len(head) - 2 * len(lines):
        raise RuntimeError("a header of the answer holds control characters")
    return head + b"\r\n"


def cycle_of(send: Send) -> Cycle | None:
    """Return the answer that `send` sends, if our server does, and nothing between changes bodies.

    Who wraps a `send` like that offers it as `inner`.
    """
    owner = getattr(getattr(send, "inner", send), "__self__", None)
    return owner if isinstance(owner, Cycle) else None


def _chunked(body: bytes, *, is_last: bool) -> bytes:
    """Return a piece of a body as a chunk (RFC 9112, 7.1)."""
    if not is_last:
        return b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
