"""Runs an ASGI application on uvicorn, the same way for both services."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from shared.http.express_protocol import ExpressProtocol
from shared.kit.memory import settle

# What a forced end waits for clients to hear of it.
_GOODBYE_S = 1.0


class PortTaken(Exception):
    """Another program listens there."""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        PortTaken: another program has the port.
        OSError: the address is not this machine's, or may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with its protocol named, asyncio sends small answers at once (TCP_NODELAY)
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as exc:
        listener.close()
        if exc.errno in {48, 98}:  # EADDRINUSE on macOS and Linux
            raise PortTaken(f"Port {port} on {host} is taken by another program.") from exc
        raise
    return listener


class _Server(uvicorn.Server):
    """Drains on the first signal, gives up on the second, and then exits with 0."""

    def __init__(
        self, config: uvicorn.Config, drain_s: Callable[[], float], on_exit: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._on_exit = on_exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        settle()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self.config.timeout_graceful_shutdown = _whole(self._drain_s())
        self._on_exit()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # which uvicorn takes for leave to skip this
            running = list(self.server_state.tasks)
            for task in running:
                task.cancel()
            if running:  # they tell their clients why, before what they stand on is closed
                await asyncio.wait(running, timeout=_GOODBYE_S)
            await self.lifespan.shutdown()


def server_options(*, drain_s: float) -> dict[str, object]:
    """Return the options of uvicorn that both services use."""
    return {
        "loop": "uvloop",
        "http": ExpressProtocol,
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        # a header that anybody can send must not decide who the caller is
        "proxy_headers": False,
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": _whole(drain_s),
    }


def _whole(drain_s: float) -> int:
    return max(1, round(drain_s))


def run(
    app: ASGIApp,
    listener: socket.socket,
    *,
    drain_s: Callable[[], float],
    on_exit: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT; running requests get `drain_s` seconds to finish, as it is then.

    Raises:
        SystemExit: the application could not start.
    """
    options = server_options(drain_s=drain_s())
    server = _Server(uvicorn.Config(app, **options), drain_s, on_exit)  # type: ignore[arg-type] # options are uvicorn's
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server.run(sockets=[listener])
    if not server.started:
        raise SystemExit(3)
