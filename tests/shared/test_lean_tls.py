"""To which addresses the lean transport connects, and TLS."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from shared.http.errors import UpstreamUnreachable
from shared.http.transport import OutboundRequest
from tests.shared.certificates import make_certificate
from tests.shared.transports import (
    LONG,
    OK,
    answer_to,
    bytes_server,
    get,
    lean,
    say_hello,
    upstream_of,
)

# addresses and TLS


async def test_an_address_that_is_not_allowed_gets_nothing() -> None:
    got: list[bytes] = []
    asked: list[str] = []

    async def listen(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read())

    def allow(address: str) -> bool:
        asked.append(address)
        return False

    async with bytes_server(listen) as url, lean(allow_address=allow) as transport:
        for address in (url, url.replace("http:", "https:")):
            with pytest.raises(UpstreamUnreachable, match="address is not allowed") as failed:
                await answer_to(transport, get(address))
            assert "127.0.0.1" not in failed.value.message
        await asyncio.sleep(0.05)
        assert asked == ["127.0.0.1", "127.0.0.1"]
        assert b"".join(got) == b""


async def test_an_address_that_is_allowed() -> None:
    async with upstream_of(say_hello) as upstream, lean(allow_address=bool) as transport:
        assert await answer_to(transport, upstream.ask()) == b"hello"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of its own authority, for `localhost` only."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        (line,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-l"))
        body = await reader.readexactly(int(line.split(b":")[1]))
        writer.write(OK + b"content-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()


async def test_tls(certificate: tuple[Path, Path]) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*certificate)
    names: list[str | None] = []
    server_side.sni_callback = lambda _sock, name, _context: names.append(name)

    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    async with bytes_server(echo, ssl=server_side) as address:
        url = address.replace("127.0.0.1", "localhost")
        async with lean(ssl_context=trusting) as transport:
            for size in (1, 100_000, 3_000_000):
                body = b"x" * size
                request = OutboundRequest(method="POST", url=url, body=body, timeouts=LONG)
                assert await answer_to(transport, request) == body
            assert names == ["localhost"]  # one connection
            with pytest.raises(UpstreamUnreachable):  # not for this name
                await answer_to(transport, get(address))
        async with lean() as transport:
            with pytest.raises(UpstreamUnreachable, match="certificate"):
                await answer_to(transport, get(url))
