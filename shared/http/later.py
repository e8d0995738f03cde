"""What is loaded by the first request for it, beside all others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Receive, Scope, Send


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
        if self._app is None:
            # whoever leaves meanwhile does not stop it for the others
            await asyncio.shield(self.load())
        assert self._app is not None  # noqa: S101 - it is loaded
        await self._app(scope, receive, send)

    def load(self) -> asyncio.Future[ASGIApp]:
        """Begin to build it, unless that is under way or done; return what has it once it is built."""
        if self._loading is None:
            loop = asyncio.get_running_loop()
            self._loading = loop.create_future()
            # no executor's thread: the end of the service does not wait for it
            thread = threading.Thread(target=self._run, args=(loop,), name="loading", daemon=True)
            thread.start()
        return self._loading

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        app: ASGIApp | None = None
        problem: BaseException | None = None
        try:
            app = self._build()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            problem = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(self._end, app, problem)

    def _end(self, app: ASGIApp | None, problem: BaseException | None) -> None:
        assert self._loading is not None  # noqa: S101 - it has begun
        loading = self._loading
        if problem is None and app is not None:
            self._app = app
            loading.set_result(app)
            return
        self._loading = None  # the next request tries again
        loading.set_exception(problem or RuntimeError("nothing was built"))
        loading.exception()  # it may be that nobody waits any more
