"""Heads of messages that came before on the same connection: the same bytes mean the same.

Whoever keeps a connection sends nearly the same head with each message: only the digits of its
`content-length` differ. So a head that was parsed once need not be parsed again, nor judged by what follows
from it alone. A message goes by this only if everything else of its head is the same, byte for byte, and
the whole message, and no more, came in one piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_END = b"\r\n\r\n"


class KnownHead:
    """One head. `notes` is for whoever draws conclusions from it."""

    __slots__ = ("_after", "_before", "_size", "notes")

    def __init__(self, before: bytes, after: bytes) -> None:
        """Take what comes before the digits, and what comes behind them."""
        self._before = before
        self._after = after
        self._size = len(before)
        self.notes: Any = None

    @classmethod
    def of(cls, message: bytes) -> KnownHead | None:
        """Return the head of a whole message that was parsed; None if its length is said in another way."""
        head_bytes = message.find(_END) + len(_END)
        found = list(_LENGTH.finditer(message, 0, head_bytes))
        if len(found) != 1 or int(found[0][1]) != len(message) - head_bytes:
            return None
        return cls(message[: found[0].start(1)], message[found[0].end(1) : head_bytes])

    def body_of(self, message: bytes) -> bytes | None:
        """Return the body of a message with this head; None if it has another one, or is not here whole."""
        if not message.startswith(self._before):
            return None
        size = self._size
        end = message.find(b"\r", size, size + 10)
        if end <= size or not message.startswith(self._after, end):
            return None
        digits = message[size:end]
        start = end + len(self._after)
        if not digits.isdigit() or len(message) - start != int(digits):
            return None
        return message[start:]


def without_length(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers that are the same for all messages with a known head."""
    return [pair for pair in headers if pair[0].lower() != b"content-length"]
