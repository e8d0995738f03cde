"""A service's start and stop (ASGI's lifespan)."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from starlette.types import ASGIApp, Receive, Scope, Send


class Lifespan:
    """Keeps running what serves beside requests, from the server's start to its stop."""

    def __init__(
        self, app: ASGIApp, running: Callable[[], AbstractAsyncContextManager[None]]
    ) -> None:
        """Stand in front of `app`; `running` is entered once, before the first request."""
        self._app = app
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the start and the stop (ASGI)."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        phase = "startup"
        try:
            async with self._running():
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except BaseException:
            # the server writes it into its log
            await send({"type": f"lifespan.{phase}.failed", "message": traceback.format_exc()})
            raise
        await send({"type": "lifespan.shutdown.complete"})
