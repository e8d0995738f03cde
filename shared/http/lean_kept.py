"""A connection to an upstream that knows the heads of its answers again: see `known_head`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shared.http.known_head import KnownHead, without_length
from shared.http.lean_connection import LeanConnection

# An upstream that never repeats a head is not worth the trouble to remember one.
_MOST_UNKNOWN = 8


class KeptConnection(LeanConnection):
    """A `LeanConnection`; `known` is the head of the present answer if it came before.

    The headers of such an answer are those of before, without `content-length`.
    """

    __slots__ = ("_head", "_headers", "_status", "_unknown", "known")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[LeanConnection], None]
    ) -> None:
        super().__init__(loop, on_lost)
        self.known: KnownHead | None = None
        self._head: KnownHead | None = None
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._unknown = 0

    def data_received(self, data: bytes) -> None:
        """Take what came (asyncio): at once if it is an answer with a known head, else by the parser."""
        is_first = not self.is_heard
        if is_first and self._head is not None and self._take_known(self._head, data):
            return
        self.known = None
        super().data_received(data)
        if is_first and self._unknown < _MOST_UNKNOWN:
            self._learn(data)

    def peek(self) -> bytes:
        """Return all that is here of the body, and leave it there."""
        pieces = self.pieces
        if len(pieces) > 1:
            pieces[:] = [b"".join(pieces)]
        return pieces[0] if pieces else b""

    def _take_known(self, head: KnownHead, data: bytes) -> bool:
        if self.is_idle or self.error is not None or self._is_head_only:
            return False
        body = head.body_of(data)
        if not body:
            return False
        self._unknown = 0
        self.known = head
        self.status, self.headers = self._status, self._headers
        self.is_heard = self.has_head = self.is_complete = self.is_reusable = True
        self.pieces.append(body)
        self.wake()
        return True

    def _learn(self, data: bytes) -> None:
        """Keep the head of an answer that came in one piece, in the hope that it comes again."""
        is_whole = self.is_complete and self.is_reusable and self.error is None
        if is_whole and 200 <= self.status < 300 and self.encoding is None:
            self._unknown += 1
            self._head = None if self._is_head_only else KnownHead.of(data)
            self._status, self._headers = self.status, without_length(self.headers)
