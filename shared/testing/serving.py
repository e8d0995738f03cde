"""Serves an ASGI application on loopback inside a test's event loop, as in production."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from shared.http.serve import bind, server_options

_TURNS = 20
"""How often a loop turns, at most, until it has told idle connections' owners that they are closed."""


class _Server(uvicorn.Server):
    """Stops when it is told to, where uvicorn looks ten times a second, and at once if nothing runs."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._told.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._told.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._told.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for _ in range(_TURNS):
            if not (self.server_state.connections or self.server_state.tasks):
                await self.lifespan.shutdown()
                return
            await asyncio.sleep(0)
        await super().shutdown(sockets)  # gives what runs its time; never takes less than 0.1 s


@asynccontextmanager
async def serving(
    app: ASGIApp, *, host: str = "127.0.0.1", listener: socket.socket | None = None
) -> AsyncIterator[str]:
    """Yield `http://HOST:PORT` of the running application; it is stopped at the end.

    Args:
        app: the application.
        host: where it listens, on a free port.
        listener: a listening socket to use instead, for an application that must know its port.

    Raises:
        RuntimeError: the application did not start.
    """
    listener = listener or bind(host, 0)
    config = uvicorn.Config(app, **server_options(drain_s=1))  # type: ignore[arg-type] # uvicorn's own
    server = _Server(config)
    task = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if task.done():
                raise RuntimeError("the application did not start")
            await asyncio.sleep(0.005)
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.stop()
        await asyncio.wait_for(task, 10)
        listener.close()
        for handler in logging.getLogger().handlers:
            handler.flush()  # as the end of a program does: lines may wait for more
