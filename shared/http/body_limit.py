"""A cap on request bodies for routes that a framework reads."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.http.asgi import body_timeout, header
from shared.http.cutoff import TimeLimit
from shared.http.errors import BodyTooLarge


class BodyLimit:
    """Refuses bodies over `limit` bytes, declared or sent, and those that pause for `idle_s`."""

    def __init__(self, app: ASGIApp, limit: int, *, idle_s: float = 30.0) -> None:
        self._app = app
        self._limit = limit
        self._idle_s = idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, counting what comes in."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if int(header(scope, b"content-length") or b"0") > self._limit:
            raise self._too_large()
        size, is_whole = 0, False

        async def counted() -> Message:
            nonlocal size, is_whole
            if is_whole:
                return await receive()  # waits for the client to leave
            with TimeLimit(self._idle_s) as pause:
                message = await receive()
            if pause.is_cut:
                raise body_timeout()
            is_whole = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The request's body is larger than {self._limit // 1024} KiB.")
