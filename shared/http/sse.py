"""Server-sent events as bytes: where one ends, and what it says.

The framer splits and never re-serialises, so events leave as they came. Line ends are LF, CRLF or
CR (WHATWG HTML, "Server-sent events"); a blank line ends an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared.http.errors import UpstreamFailed

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_CR, _LF = 13, 10
MAX_EVENT_BYTES = 8 * 1024 * 1024


class SseFramer:
    """Cuts a byte stream into events. What goes in comes out, byte for byte, cut elsewhere."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._pending = bytearray()
        self._max_event_bytes = max_event_bytes

    @property
    def pending(self) -> bytes:
        """Return the bytes of the event that has not ended yet."""
        return bytes(self._pending)

    @property
    def pending_bytes(self) -> int:
        """Return how long that is by now."""
        return len(self._pending)

    def only_data(self, chunk: bytes) -> bytes | None:
        """Return the data if `chunk` is one event, and that one line of data; None: it has to be fed."""
        return None if self._pending else _line_of_data(chunk)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that end in `chunk`, each with the blank line that ends it.

        Raises:
            UpstreamFailed: an event is longer than the limit.
        """
        if not self._pending and _is_one_event(chunk):
            return [chunk]  # as most of them come
        # a line end may be cut in two, so search from just before the new bytes
        search_from = max(0, len(self._pending) - 3)
        if self._pending:  # grows in place: an event of many pieces is not copied with each of them
            self._pending += chunk
        buffer = self._pending or chunk
        events: list[bytes] = []
        start = 0
        for end in _ends(buffer, search_from):
            events.append(bytes(buffer[start:end]))
            start = end
        if buffer is chunk:
            self._pending += chunk[start:]
        else:
            del self._pending[:start]
        if len(self._pending) > self._max_event_bytes:
            raise UpstreamFailed("The upstream sent an event that is too long.")
        return events


def _is_one_event(chunk: bytes) -> bool:
    end = len(chunk) - 2
    return end >= 0 and _CR not in chunk and chunk.find(b"\n\n") == end


def _ends(buffer: bytes | bytearray, at: int) -> Iterator[int]:
    """Yield where blank lines end; nothing before `at` is looked at."""
    if _CR in buffer[at:]:
        yield from (match.end() for match in _BLANK_LINE.finditer(buffer, at))
        return
    while (found := buffer.find(b"\n\n", at)) >= 0:
        at = found + 2
        yield at


def _line_of_data(event: bytes) -> bytes | None:
    """Return the data of an event that is one line of data with the usual ends; None if it is not."""
    # numbers are found by memchr, which `find` takes ten times as long to come to
    if _CR in event or not event.startswith(b"data: ") or not event.endswith(b"\n\n"):
        return None
    data = event[6:-2]
    return None if _LF in data else data


def event_data(event: bytes) -> bytes | None:
    """Return the data of one event, its lines joined by LF; None if it has no data line."""
    line = _line_of_data(event)
    if line is not None:
        return line
    lines = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in _LINE_END.split(event)
        if line.startswith(b"data:") or line == b"data"
    ]
    return b"\n".join(lines) if lines else None
