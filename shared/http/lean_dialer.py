"""Makes the lean transport's connections: names, addresses, TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

import anyio
from aiohappyeyeballs import start_connection

from shared.http.errors import UpstreamTimeout, UpstreamUnreachable
from shared.http.lean_connection import LeanConnection
from shared.http.lean_kept import KeptConnection
from shared.http.lean_request import Target

# RFC 8305: how long the first address has a head start over the next.
_NEXT_ADDRESS_S = 0.25


class Dialer:
    """Opens connections. The default TLS context is made on first use: it is slow and large."""

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        allow_address: Callable[[str], bool] | None = None,
    ) -> None:
        self._ssl_context = ssl_context
        self._allow_address = allow_address

    async def dial(
        self,
        target: Target,
        on_lost: Callable[[LeanConnection], None],
        *,
        connect_s: float,
        total_at: float,
    ) -> KeptConnection:
        """Return a new connection to a target.

        Raises:
            UpstreamUnreachable: none could be made, not in time, not securely, or not to there.
            UpstreamTimeout: the limit of the whole exchange passed meanwhile.
        """
        loop = asyncio.get_running_loop()
        connection = KeptConnection(loop, on_lost)
        left = total_at - loop.time()
        try:
            with anyio.fail_after(min(connect_s, left)):
                await self._connect(loop, connection, target)
        except TimeoutError:
            connection.abort()
            if left < connect_s:
                raise UpstreamTimeout("The upstream did not answer in time.") from None
            raise UpstreamUnreachable("The upstream could not be reached in time.") from None
        except ssl.SSLError as exc:
            connection.abort()
            raise UpstreamUnreachable(
                "No secure connection to the upstream could be made. Check its certificate."
            ) from exc
        except (OSError, RuntimeError) as exc:  # uvloop has RuntimeErrors of its own
            connection.abort()
            raise UpstreamUnreachable("The upstream could not be reached.") from exc
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _connect(
        self, loop: asyncio.AbstractEventLoop, connection: KeptConnection, target: Target
    ) -> None:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        if self._allow_address is not None:
            found = [info for info in found if self._allow_address(str(info[4][0]))]
        if not found:
            raise UpstreamUnreachable("The upstream's address is not allowed by the settings.")
        connected = await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_S)
        # Shielded: uvloop loses the socket when this is cancelled. It takes no longer than a turn
        # of the loop.
        await asyncio.shield(adopt(loop, connection, connected))
        if target.is_tls:
            transport = await loop.start_tls(
                connection.transport,
                connection,
                await self._context(),
                server_hostname=target.host.rstrip("."),
            )
            if transport is None:  # the far side is gone already
                raise ConnectionResetError
            connection.transport = transport

    async def _context(self) -> ssl.SSLContext:
        if self._ssl_context is None:
            # reads a few hundred certificates
            context = await asyncio.to_thread(ssl.create_default_context)
            context.set_alpn_protocols(["http/1.1"])
            self._ssl_context = context
        return self._ssl_context


async def adopt(
    loop: asyncio.AbstractEventLoop, connection: KeptConnection, connected: socket.socket
) -> None:
    """Let the connection have the socket; one that was given up meanwhile closes it.

    Only now: uvloop takes the socket over at the very end. Closed before, it would be closed a second
    time with the Python object, by its number, which may be another connection's by then.
    """
    await loop.create_connection(lambda: connection, sock=connected)
    if connection.is_closed:
        connection.transport.abort()
