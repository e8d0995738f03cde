"""Comments to a client that waits for the first event of its stream.

A model that loads, or a long prompt, keeps a client waiting for minutes, and its read timeout, or
that of a proxy between, does not know why. A comment (`: keep-alive`) does no harm to any SDK.
"""

from __future__ import annotations

import asyncio
from asyncio.events import TimerHandle
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from starlette.types import Scope, Send

from shared.http.asgi import header
from shared.http.errors import ApiError
from shared.http.relay import STREAM_HEADERS, end_with, say_goodbye

_COMMENT = b": keep-alive\n\n"
_HEAD = ((b"content-type", b"text/event-stream; charset=utf-8"), *STREAM_HEADERS)


def takes_comments(scope: Scope) -> bool:
    """Tell whether the client takes comments while it waits; `x-iir-keep-alive: off` does not."""
    return (header(scope, b"x-iir-keep-alive") or b"").lower() != b"off"


class KeepAlive(AbstractAsyncContextManager["KeepAlive"]):
    """Begins the answer after `every_s` of silence, then sends a comment as often, until `stop`.

    What goes wrong before that is an error with its own status, as if this were not here. Later
    (`has_begun`) the status is out, and leaving the block with an error makes it the stream's last
    event.
    """

    __slots__ = ("_error_event", "_every_s", "_headers", "_send", "_task", "_timer", "has_begun")

    def __init__(
        self,
        send: Send,
        *,
        every_s: float,
        error_event: Callable[[ApiError], bytes],
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send nothing yet.

        Args:
            send: the client's channel.
            every_s: seconds of silence before each comment; 0 sends none.
            error_event: renders an error for the open stream.
            headers: what the head says besides.
        """
        self._send = send
        self._every_s = every_s
        self._error_event = error_event
        self._headers = headers
        self._timer: TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.has_begun = False

    async def __aenter__(self) -> KeepAlive:  # noqa: PYI034 - typing has no Self before Python 3.11
        """Begin to wait."""
        if self._every_s > 0:
            self._timer = asyncio.get_running_loop().call_later(self._every_s, self._begin)
        return self

    async def stop(self) -> None:
        """Send no more: the first event is here."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            # not awaited itself: its cancellation would look like that of the request
            await asyncio.wait((task,))
            if not task.cancelled():
                task.result()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Stop; tell a client that was kept waiting why there is no answer."""
        is_waiting = self._timer is not None or self._task is not None
        if not is_waiting:
            return False
        await self.stop()
        if not self.has_begun:
            return False
        if isinstance(error, ApiError):
            await end_with(self._send, self._error_event(error))
        elif kind is asyncio.CancelledError:
            await say_goodbye(self._send, self._error_event)
        return False

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        headers = [*_HEAD, *self._headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self.has_begun = True
        while True:
            await self._send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
            await asyncio.sleep(self._every_s)
