"""Server-sent events as bytes: where one ends, and what it says.

The framer splits and never re-serialises, so events leave as they came. Line ends are LF, CRLF or
CR (WHATWG HTML, "Server-sent events"); a blank line ends an event.
"""

from __future__ import annotations

import re

from shared.http.errors import UpstreamFailed

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINE_END = re.compile(rb"\r\n|\n|\r")
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

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the events that end in `chunk`, each with the blank line that ends it.

        Raises:
            UpstreamFailed: an event is longer than the limit.
        """
        if not self._pending and _is_one_event(chunk):
            return [chunk]  # nearly every chunk of an engine
        # a line end may be cut in two, so search from just before the new bytes
        search_from = max(0, len(self._pending) - 3)
        if self._pending:  # grows in place: an event of many pieces is not copied with each of them
            self._pending += chunk
        buffer = self._pending or chunk
        events: list[bytes] = []
        start = 0
        for match in _BLANK_LINE.finditer(buffer, search_from):
            events.append(bytes(buffer[start : match.end()]))
            start = match.end()
        if buffer is chunk:
            self._pending += chunk[start:]
        else:
            del self._pending[:start]
        if len(self._pending) > self._max_event_bytes:
            raise UpstreamFailed("The upstream sent an event that is too long.")
        return events


def _is_one_event(chunk: bytes) -> bool:
    end = len(chunk) - 2
    return end >= 0 and chunk.find(b"\n\n") == end and b"\r" not in chunk


def _has_one_line(event: bytes) -> bool:
    return event.find(b"\n") == len(event) - 2 and b"\r" not in event


def event_data(event: bytes) -> bytes | None:
    """Return the data of one event, its lines joined by LF; None if it has no data line."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and _has_one_line(event):
        return event[6:-2]
    lines = [
        line[6:] if line.startswith(b"data: ") else line[5:]
        for line in _LINE_END.split(event)
        if line.startswith(b"data:") or line == b"data"
    ]
    return b"\n".join(lines) if lines else None
