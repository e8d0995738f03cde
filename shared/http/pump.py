"""The middle of a stream, moved from upstream to client within the loop's own call: no task wakes for it.

A chunk's way through tasks (a future, a turn of the loop, a chain of coroutines down to the connection and
another up to the client) costs more CPU than all that is done to its bytes. Where both ends are ours, the
upstream's connection calls in here instead. The iteration of the stream does the rest: what comes before,
the end, and whatever goes wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import lru_cache

import msgspec
from starlette.types import Send

from shared.http.cycle import Cycle, cycle_of
from shared.http.event_stream import EventStream
from shared.http.lean_connection import LeanConnection
from shared.http.lean_transport import plain_connection

_CR, _LF = 13, 10
_EVENT = b"data: {"
_NO_CHUNK = b"\n"


def pump_for(chunks: AsyncIterator[bytes], send: Send) -> Pump | None:
    """Return what moves `chunks` to `send` if both ends are ours and nothing between them changes bytes."""
    if not isinstance(chunks, EventStream):
        return None
    connection, cycle = plain_connection(chunks.response), cycle_of(send)
    return None if connection is None or cycle is None else Pump(chunks, connection, cycle)


class Pump:
    """Moves one stream whose head was sent, for as long as nothing but events comes."""

    __slots__ = (
        "_again",
        "_connection",
        "_cycle",
        "_flow",
        "_loop",
        "_stopped",
        "_stream",
        "_usual",
        "_write",
    )

    def __init__(self, stream: EventStream, connection: LeanConnection, cycle: Cycle) -> None:
        """Move nothing yet: `stream` is read from `connection`, and `cycle` sends it."""
        self._stream = stream
        self._connection = connection
        self._cycle = cycle
        self._flow = cycle.flow
        self._write = cycle.transport.write
        self._usual = stream.usual
        self._loop = asyncio.get_running_loop()
        # true if it goes on once the client reads on
        self._stopped: asyncio.Future[bool] = self._loop.create_future()
        self._again: asyncio.Handle | None = None

    async def run(self) -> None:
        """Move events until the rest is the iteration's: the end, or what the upstream did instead.

        Raises:
            ApiError: as the iteration.
        """
        if self._stream.is_over:
            return
        if self._flow.write_paused:  # by comments that the client did not read
            await self._flow.drain()
        self._connection.listener = self._look
        try:
            self._cycle.push(self._stream.take_first())  # together with the head
            self._turn()
            while await self._stopped:
                await self._flow.drain()
                self._stopped = self._loop.create_future()
                self._turn()
        finally:
            self._connection.listener = self._connection.tap = None
            if self._again is not None:
                self._again.cancel()

    def _look(self) -> None:
        """See what the connection has: something came, or it is the end."""
        if self._again is None:
            self._turn()

    def _turn(self) -> None:
        """Pass on as much as one turn of the loop may take.

        It is called by the loop, or by the connection in the midst of its own work, neither of which could
        do anything about an exception: that goes where `run` waits.
        """
        self._again = self._connection.tap = None
        if self._stopped.done():
            return
        try:
            if self._flow.write_paused:
                self._stopped.set_result(True)
            elif self._move():
                self._stopped.set_result(False)
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._stopped.set_exception(error)

    def _move(self) -> bool:
        """Pass on a piece; return whether the rest is the iteration's."""
        stream, connection = self._stream, self._connection
        if stream.has_rest or connection.pieces:
            passed = stream.take(b"" if stream.has_rest else connection.take())
            if stream.is_over:
                stream.give_back(passed)
                return True
            if passed:
                self._cycle.push(passed)
            if stream.has_rest or connection.pieces:
                self._again = self._loop.call_soon(self._turn)
                return False
        if connection.is_complete or connection.error is not None:
            return True
        if stream.is_between_events and self._cycle.chunked_encoding:
            connection.tap = self._pass
        return False

    def _pass(self, chunk: bytes) -> bool:
        """Pass on a whole chunk, as it is, if it holds one event of the usual kind; else do nothing.

        It is called between chunks, while nothing waits on either side.
        """
        opening = _opening(len(chunk))
        if not (chunk.startswith(opening) and chunk.endswith(b"}\n\n\r\n")):
            return False
        data = chunk[len(opening) - 1 : -4]
        if _LF in data or _CR in data or self._flow.write_paused or self._stopped.done():
            return False
        try:
            if self._is_usual(data):
                self._write(chunk)
            else:
                self._judge(chunk, data)
        except Exception as error:  # noqa: BLE001 - raised by `run`
            self._connection.tap = None
            self._stopped.set_exception(error)
        return True

    def _is_usual(self, data: bytes) -> bool:
        if self._usual is None:
            return False
        try:
            if not data.isascii():
                data.decode()  # msgspec does not look into what it passes over
            self._usual(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        return True

    def _judge(self, chunk: bytes, data: bytes) -> None:
        stream = self._stream
        passed = stream.judged(b"data: " + data + b"\n\n", data)
        if stream.is_over:
            stream.give_back(passed)
            self._connection.tap = None
            self._stopped.set_result(False)
        elif passed:
            self._write(chunk)


@lru_cache(maxsize=1024)
def _opening(size: int) -> bytes:
    """Return how a chunk (RFC 9112, 7.1) of `size` bytes, all in all, with an event in JSON begins."""
    for digits in (2, 3):
        length = b"%x" % max(0, size - digits - 4)
        if len(length) == digits:
            return length + b"\r\n" + _EVENT
    return _NO_CHUNK
