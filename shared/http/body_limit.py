"""Limits on request bodies for routes that a framework reads."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.http.asgi import BodyReader


class BodyLimit:
    """Refuses bodies over `limit` bytes, declared or sent, and those that pause or drip.

    A framework reads a body before it asks who sent it; here a stranger is refused before.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        *,
        authorize: Callable[[Scope], object],
        idle_s: float = 30.0,
        grace_s: float = 60.0,
    ) -> None:
        """Stand in front of `app`.

        Args:
            app: what routes the request and reads its body.
            limit: the most bytes of a body.
            authorize: asked with the scope of a request that is routed, before its body is read; raises
                `ApiError` if its sender may not do what the route does.
            idle_s: how long a client may pause between two pieces, in seconds.
            grace_s: how long it may drip, in seconds.
        """
        self._app = app
        self._limit = limit
        self._authorize = authorize
        self._idle_s = idle_s
        self._grace_s = grace_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, counting what comes in."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reader: BodyReader | None = None

        async def limited() -> Message:
            nonlocal reader
            if reader is None:
                self._authorize(scope)
                reader = BodyReader(
                    scope, receive, limit=self._limit, idle_s=self._idle_s, grace_s=self._grace_s
                )
            if reader.is_over:
                return await receive()  # waits for the client to leave
            return await reader.receive()

        await self._app(scope, limited, send)
