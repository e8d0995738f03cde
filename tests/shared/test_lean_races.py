"""The lean transport where its upstream goes away at an awkward moment."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable

import pytest

from shared.http.errors import UpstreamInterrupted
from shared.http.lean_connection import LeanConnection
from shared.http.lean_dialer import Dialer
from shared.http.lean_request import Requests, Target
from shared.http.lean_transport import LeanTransport
from shared.http.transport import OutboundRequest


class Late(LeanTransport):
    """Hands a connection out when its upstream has closed it already."""

    async def dialled(
        self, target: Target, request: OutboundRequest, total_at: float
    ) -> LeanConnection:
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


async def after(turns: int, then: Callable[[], object]) -> None:
    """Call something after so many turns of the loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
    then()


async def test_a_socket_that_was_given_up_is_closed_once() -> None:
    """Closed twice, its number would be taken from whoever has it by then."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    loop = asyncio.get_running_loop()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for turns in range(12):
            leaving: list[asyncio.Task[None]] = []

            def leave(_address: str, turns: int = turns) -> bool:
                leaving.append(loop.create_task(after(turns, dialling.cancel)))
                return True

            dial = Dialer(allow_address=leave).dial(
                Requests().target("GET", url), lambda _: None, connect_s=5, total_at=loop.time() + 5
            )
            dialling = loop.create_task(dial)
            for connection in await asyncio.gather(dialling, return_exceptions=True):
                if isinstance(connection, LeanConnection):
                    connection.abort()
            await asyncio.gather(*leaving)
            await asyncio.sleep(0.005)
    assert [str(each.message) for each in caught] == []
    server.close()
    await server.wait_closed()
