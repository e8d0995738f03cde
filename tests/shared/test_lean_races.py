"""The lean transport where its upstream goes away at an awkward moment."""

from __future__ import annotations

import asyncio
import socket

import pytest

from shared.http.errors import UpstreamInterrupted
from shared.http.lean_dialer import adopt
from shared.http.lean_kept import KeptConnection
from shared.http.lean_request import Target
from shared.http.lean_transport import LeanTransport
from shared.http.transport import OutboundRequest


class Late(LeanTransport):
    """Hands a connection out when its upstream has closed it already."""

    async def dialled(
        self, target: Target, request: OutboundRequest, total_at: float
    ) -> KeptConnection:
        connection = await super().dialled(target, request, total_at)
        while not connection.is_closed:
            await asyncio.sleep(0.001)
        return connection


@pytest.mark.parametrize("size", [0, 100_000, 2_000_000])
async def test_a_connection_that_closes_as_it_is_made(size: int) -> None:
    def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport = Late()
    request = OutboundRequest(method="POST", url=f"http://127.0.0.1:{port}/", body=b"x" * size)
    with pytest.raises(UpstreamInterrupted):
        async with transport.open(request):
            raise AssertionError("answered")
    await transport.aclose()
    server.close()
    await server.wait_closed()


async def test_a_socket_that_was_given_up_is_closed_once() -> None:
    """Closed twice, its number would be taken from whoever has it by then."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    connected = socket.socket()
    connected.setblocking(False)
    await loop.sock_connect(connected, server.sockets[0].getsockname())
    connection = KeptConnection(loop, lambda _: None)
    connection.abort()
    await adopt(loop, connection, connected)
    await asyncio.sleep(0.01)
    assert connected.fileno() == -1
    server.close()
    await server.wait_closed()
