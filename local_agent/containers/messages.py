"""A blocking call that reports as it goes, seen from the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")

Call = Callable[[Callable[[T], None]], object]


class _Left(Exception):
    """Raised in the call: nobody wants its reports any more."""


class _End:
    """The end of the call: what it raised, None if it returned."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class Messages(Generic[T]):
    """What a call reports, in order."""

    def __init__(self, call: Call[T]) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[T | _End] = asyncio.Queue()
        self._is_left = False

    async def next(self) -> T | None:
        """Return the next report; None once the call has returned.

        Raises:
            Exception: what the call raised.
        """
        item = await self._queue.get()
        if not isinstance(item, _End):
            return item
        if item.error is not None:
            raise item.error
        return None

    def leave(self) -> None:
        """Take no more: the next report ends the call."""
        self._is_left = True

    def run(self) -> None:
        """Run the call; in a thread."""
        error: Exception | None = None
        try:
            self._call(self._report)
        except _Left:
            return
        except Exception as raised:  # noqa: BLE001 - it is raised again where it is waited for
            error = raised
        with suppress(_Left):
            self._give(_End(error))

    def _report(self, item: T) -> None:
        if self._is_left:
            raise _Left
        self._give(item)

    def _give(self, item: T | _End) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the loop has ended
            raise _Left from None


@contextmanager
def reports_of(call: Call[T]) -> Iterator[Messages[T]]:
    """Run `call(report)` in a thread of its own, and give what it reports.

    If the context is left early, the next report ends the call. The thread keeps no process from ending: a
    call may hang in a socket.
    """
    messages = Messages(call)
    Thread(target=messages.run, name="container reports", daemon=True).start()
    try:
        yield messages
    finally:
        messages.leave()
