"""From an upstream's reply to the client, chunk by chunk, for as long as the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
from starlette.types import Receive, Send

from shared.http.asgi import ClientGone, send_body
from shared.http.errors import ApiError, ShuttingDown
from shared.http.exchange import Reply

# A client that does not read must not hold up the end of the service.
_GOODBYE_S = 1.0
_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[Callable[[], object]]:
    """Cancel the block as soon as the client goes away, in whatever phase it is.

    The request's body must have been read. Everything opened inside the block is closed by the
    cancellation, so one scope owns queue place, slot, upstream and stream.

    Enters with a function to call once the answer is sent: the server then reports a disconnect
    too, which must not cancel what is left to do.

    Raises:
        ClientGone: the client went away.
    """
    with anyio.CancelScope() as scope:
        # a task group would cost more than the rest of the request's bookkeeping together
        watcher = asyncio.get_running_loop().create_task(_cancel_on_disconnect(receive, scope))
        try:
            yield watcher.cancel
        finally:
            watcher.cancel()
    if scope.cancelled_caught:
        raise ClientGone


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def relay(reply: Reply, send: Send, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Send the reply. Once headers are out, an upstream's failure becomes one error event.

    Raises:
        ApiError: the upstream broke off an answer that is no event stream; the connection has to be
            closed, since the client can't be told otherwise.
    """
    if reply.is_whole:
        body = b"".join([chunk async for chunk in reply.chunks])
        await send_body(send, reply.status, [*reply.headers, *headers], body)
        return
    started = [*reply.headers, *headers, *(_STREAM_HEADERS if reply.is_stream else ())]
    await send({"type": "http.response.start", "status": reply.status, "headers": started})
    try:
        async for chunk in reply.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except ApiError as error:
        if not reply.is_stream:
            raise
        await _send_part(send, reply.error_event(error))
    except asyncio.CancelledError:
        if reply.is_stream:
            await _say_goodbye(reply, send)
        raise
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _say_goodbye(reply: Reply, send: Send) -> None:
    """End a stream that the service can't finish; a client that left gets nothing of it."""
    error = ShuttingDown("The service is stopping before the answer is complete. Ask again.")
    with anyio.move_on_after(_GOODBYE_S, shield=True):
        await _send_part(send, reply.error_event(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
