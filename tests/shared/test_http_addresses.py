"""No upstream is a cloud's metadata service, whatever its name resolved to when somebody looked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from shared.http.addresses import may_connect
from shared.http.errors import UpstreamUnreachable
from shared.http.transport import OutboundRequest, Transport
from shared.http.transports import TransportName, make_transport
from tests.shared.transports import LONG, body_of, say_hello, upstream_of

METADATA = "169.254.169.254"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("192.168.1.9", True),
        ("::ffff:192.168.1.9", True),
        ("169.254.7.9", True),  # two Macs on one cable
        ("fe80::1%en0", True),
        ("169.254.169.254", False),
        ("169.254.170.2", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:a9fe:a9fe", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:a9fe:a9fe::1", False),
        ("fd00:ec2::254", False),
        ("fe80::a9fe:a9fe%eth0", False),
        ("metadata.google.internal", False),
        ("", False),
    ],
)
def test_where_connections_may_go(address: str, expected: bool) -> None:
    assert may_connect(address) is expected


class Resolver:
    """Answers look-ups as told, one after the other, and notes whom anybody connects to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[str] = []
        self.connected: list[str] = []
        loop = asyncio.get_running_loop()
        connect = loop.sock_connect

        async def getaddrinfo(_host: str, port: int, **_: Any) -> list[Any]:
            address = self.answers.pop(0)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        async def sock_connect(sock: socket.socket, address: Any) -> None:
            self.connected.append(address[0])
            await connect(sock, address)

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(loop, "sock_connect", sock_connect)


@pytest.fixture(params=["lean", "aiohttp"])
async def made(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    name: TransportName = request.param
    transport = make_transport(name)
    yield transport
    await transport.aclose()


async def answer_to(transport: Transport, url: str) -> bytes:
    request = OutboundRequest(method="GET", url=url, timeouts=LONG)
    with anyio.fail_after(2):
        async with transport.open(request) as response:
            return await body_of(response)


async def test_a_name_that_points_elsewhere_when_it_is_connected_to(
    made: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with upstream_of(say_hello) as upstream:
        resolver = Resolver(monkeypatch)
        port = upstream.url.rsplit(":", 1)[1]
        resolver.answers = ["127.0.0.1", METADATA]
        assert await answer_to(made, f"http://one.example:{port}/") == b"hello"
        with pytest.raises(UpstreamUnreachable) as failed:
            await answer_to(made, f"http://two.example:{port}/")
        assert METADATA not in failed.value.message
        assert set(resolver.connected) == {"127.0.0.1"}


@pytest.mark.parametrize("host", [METADATA, f"[::ffff:{METADATA}]", "[fd00:ec2::254]"])
async def test_an_address_that_stands_in_the_url(
    made: Transport, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    resolver = Resolver(monkeypatch)
    resolver.answers = [host.strip("[]")]
    with pytest.raises(UpstreamUnreachable):
        await answer_to(made, f"http://{host}:80/latest/meta-data")
    assert resolver.connected == []
