"""What is loaded by the first request for it, beside all others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        # whoever leaves meanwhile does not stop it for the others
        app = await asyncio.shield(self.load())
        await app(scope, receive, send)

    def load(self) -> asyncio.Future[ASGIApp]:
        """Begin to build it, unless that is under way or done; return what has it once it is built."""
        if self._loading is None:
            loop = asyncio.get_running_loop()
            loading = self._loading = loop.create_future()
            # no executor's thread: the end of the service does not wait for it
            arguments = (loop, loading)
            threading.Thread(target=self._run, args=arguments, name="loading", daemon=True).start()
        return self._loading

    def _run(self, loop: asyncio.AbstractEventLoop, loading: asyncio.Future[ASGIApp]) -> None:
        end: Callable[[], None]
        try:
            end = partial(loading.set_result, self._build())
        except BaseException as problem:  # noqa: BLE001 - raised where it is waited for
            end = partial(self._fail, loading, problem)
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(end)

    def _fail(self, loading: asyncio.Future[ASGIApp], problem: BaseException) -> None:
        self._loading = None  # the next request tries again
        loading.set_exception(problem)
        loading.exception()  # it may be that nobody waits any more
