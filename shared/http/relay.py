"""From an upstream's reply to the client, chunk by chunk, for as long as the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol

import anyio
from starlette.types import Receive, Scope, Send

from shared.http.asgi import ClientGone, send_body
from shared.http.cutoff import Cutoff
from shared.http.errors import ApiError, ShuttingDown
from shared.http.exchange import Reply
from shared.http.pump import pump_for

# A client that does not read must not hold up the end of the service.
_GOODBYE_S = 1.0
STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
CONNECTION = "iir.connection"
"""The key of a scope under which our server puts the connection itself (`Watchable`)."""


class Watchable(Protocol):
    """A connection that tells when its client goes away."""

    def watch(self, gone: Callable[[], None]) -> None:
        """Call `gone` once the client is gone; soon, if it is already."""
        ...

    def unwatch(self, gone: Callable[[], None]) -> None:
        """Call it no more."""
        ...


def while_connected(
    scope: Scope, receive: Receive
) -> AbstractAsyncContextManager[Callable[[], object]]:
    """Cancel the block as soon as the client goes away, in whatever phase it is.

    The request's body must have been read. Everything opened inside the block is closed by the
    cancellation, so one scope owns queue place, slot, upstream and stream.

    Enters with a function to call once the answer is sent: the server then reports a disconnect
    too, which must not cancel what is left to do. Leaving raises `ClientGone` if the client left.
    """
    return _WhileConnected(scope.get(CONNECTION), receive)


class _WhileConnected(AbstractAsyncContextManager[Callable[[], object]]):
    __slots__ = ("_connection", "_cutoff", "_receive", "_watcher")

    def __init__(self, connection: Watchable | None, receive: Receive) -> None:
        self._connection = connection
        self._receive = receive
        self._cutoff = Cutoff()
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Callable[[], object]:
        self._cutoff.__enter__()
        if self._connection is not None:
            self._connection.watch(self._cutoff.cut)
        else:  # another server: it has to be asked
            self._watcher = asyncio.get_running_loop().create_task(self._cut_on_disconnect())
        return self._stop

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._stop()
        if self._cutoff.__exit__(kind, error, trace):
            raise ClientGone
        return False

    def _stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        elif self._connection is not None:
            self._connection.unwatch(self._cutoff.cut)

    async def _cut_on_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cutoff.cut()


async def relay(
    reply: Reply,
    send: Send,
    headers: Sequence[tuple[bytes, bytes]] = (),
    *,
    has_begun: bool = False,
) -> ApiError | None:
    """Send the reply. Once headers are out, an upstream's failure becomes one error event.

    Returns that failure (it stands in `reply.failure` too), or the error with which the answer itself
    ended, if it is one.

    Args:
        reply: what is sent.
        send: the client's channel.
        headers: what the head says besides the reply's own headers.
        has_begun: the head was sent already, since the client was kept waiting.

    Raises:
        ApiError: the upstream broke off an answer that is no event stream; the connection has to be
            closed, since the client can't be told otherwise.
    """
    if reply.body is not None:
        await send_body(send, reply.status, [*reply.headers, *headers], reply.body)
        return None
    if not has_begun:
        started = [*reply.headers, *headers, *(STREAM_HEADERS if reply.is_stream else ())]
        await send({"type": "http.response.start", "status": reply.status, "headers": started})
    try:
        await _send_chunks(reply, send)
    except ApiError as error:
        reply.failure = error.fresh()
        if not reply.is_stream:
            raise
        await end_with(send, reply.error_event(error))
    except asyncio.CancelledError:
        if reply.is_stream:
            await say_goodbye(send, reply.error_event)
        raise
    else:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    return reply.ended_by()


async def _send_chunks(reply: Reply, send: Send) -> None:
    pump = pump_for(reply.chunks, send)
    if pump is not None:
        await pump.run()
    async for chunk in reply.chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if not reply.is_stream:
            # long pieces, of which the next may be here already: others have their turn
            await asyncio.sleep(0)


async def end_with(send: Send, event: bytes) -> None:
    """Send the last event of a stream, and its end."""
    await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def say_goodbye(send: Send, error_event: Callable[[ApiError], bytes]) -> None:
    """End a stream that the service can't finish; a client that left gets nothing of it."""
    error = ShuttingDown("The service is stopping before the answer is complete. Ask again.")
    with anyio.move_on_after(_GOODBYE_S, shield=True):
        await end_with(send, error_event(error))
