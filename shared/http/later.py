"""What is loaded by the first request for it, beside all others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from shared.kit.memory import settle


class LoadedLater:
    """An ASGI application that is built when it is first asked, in a thread: requests go on meanwhile.

    A web framework takes as much of a start, and of the memory, as everything that serves models
    (`docs/decisions/0013-the-framework-is-loaded-when-it-is-asked.md`).
    """

    def __init__(self, build: Callable[[], ASGIApp]) -> None:
        """Take what builds the application; it is called once, or again if it failed."""
        self._build = build
        self._loading: asyncio.Future[ASGIApp] | None = None
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        app = self._app or await self._load()
        await app(scope, receive, send)

    async def _load(self) -> ASGIApp:
        if self._loading is None:
            loop = asyncio.get_running_loop()
            self._loading = loop.run_in_executor(None, self._build_settled)
        try:
            # whoever leaves meanwhile does not stop it for the others
            self._app = await asyncio.shield(self._loading)
        except Exception:
            self._loading = None
            raise
        return self._app

    def _build_settled(self) -> ASGIApp:
        app = self._build()
        settle()
        return app
