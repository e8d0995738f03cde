"""What a client can't do to a connection: fill memory, or hold a place for nothing."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from shared.http.protocol import GuardedProtocol
from shared.http.serve import bind, server_options


class Quick(GuardedProtocol):
    """The same with limits that a test can wait for."""

    head_s = 0.2
    write_s = 0.3


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    size = 64 * 1024 * 1024 if scope["path"] == "/endless" else 2
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(0, size, 65536):
        await send(
            {"type": "http.response.body", "body": b"x" * min(size, 65536), "more_body": True}
        )
    await send({"type": "http.response.body", "body": b""})


async def exchange(port: int, data: bytes, *, pause_s: float = 0.0) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.fixture
async def port() -> object:
    listener = bind("127.0.0.1", 0)
    options = {**server_options(drain_s=1), "http": Quick}
    server = uvicorn.Server(uvicorn.Config(answer, **options))  # type: ignore[arg-type] # uvicorn's
    task = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    yield listener.getsockname()[1]
    server.should_exit = True
    await task
    listener.close()


def parsed(raw: bytes) -> tuple[int, str]:
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: req_" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


async def pour(writer: asyncio.StreamWriter, size: int) -> None:
    for _ in range(0, size, 65536):
        writer.write(b"x" * 65536)
        await writer.drain()


CASES = {
    "one header of 200 KB": (
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
        431,
    ),
    "the same, not ended": (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 200_000, 431),
    "20,000 headers": (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"a: b\r\n" * 20_000 + b"\r\n", 431),
    "300 headers": (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"a: b\r\n" * 300 + b"\r\n", 431),
    "a URL of 300 KB": (b"GET /" + b"u" * 300_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
    "a URL of 20 KB": (b"GET /" + b"u" * 20_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
    "no HTTP": (b"hello there\r\n\r\n", 400),
    "half a head": (b"GET / HTTP/1.1\r\nhost:", 408),
    "nothing at all": (b"", 408),
    "two lengths": (
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nab",
        400,
    ),
    "length and chunks": (
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_bad_head_is_refused_in_the_envelope(port: int, case: str) -> None:
    data, status = CASES[case]
    assert parsed(await exchange(port, data))[0] == status


async def test_a_drip_of_headers_is_cut(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    started = time.perf_counter()
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n")
    reading = asyncio.ensure_future(reader.read())
    while not reading.done() and time.perf_counter() - started < 3:
        writer.write(b"a: b\r\n")
        await asyncio.sleep(0.02)
    assert parsed(await reading) == (408, "request_timeout")
    assert time.perf_counter() - started < 1
    writer.close()


async def test_a_second_request_has_a_limit_of_its_own(port: int) -> None:
    good = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(good)
    assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.write(b"GET / HTTP/1.1\r\nho")
    assert parsed(await asyncio.wait_for(reader.read(), 3)) == (408, "request_timeout")
    writer.close()


async def test_a_client_that_does_not_read_is_cut(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
    await asyncio.sleep(1.0)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(64 * 1024 * 1024), 5)
    writer.close()


async def test_rubbish_behind_a_request_never_lands_in_its_answer(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"rubbish\r\n\r\n")
    raw = await asyncio.wait_for(reader.read(), 20)
    assert raw.endswith(b"0\r\n\r\n")
    assert b"HTTP/1.1 4" not in raw
    writer.close()


async def test_a_refused_body_may_end_so_that_its_client_reads_the_answer(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 40000000\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + b"x" * 40_000_000)
    await writer.drain()
    assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    assert (await reader.readuntil(b"0\r\n\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_refused_body_without_end_is_cut(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000000\r\n\r\n")
    with pytest.raises(ConnectionError):
        await pour(writer, 200_000_000)
    writer.close()


async def test_a_body_behind_an_upgrade_is_no_request(port: int) -> None:
    hidden = b"GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
    raw = await exchange(port, head + b"content-length: %d\r\n\r\n%b" % (len(hidden), hidden))
    assert parsed(raw) == (400, "invalid_request")
    assert raw.count(b"HTTP/1.1 ") == 1


async def test_a_request_that_has_its_answer_gets_no_second_one(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)
    raw = await asyncio.wait_for(reader.readuntil(b"\r\n0\r\n\r\n"), 5)
    writer.write(b"zz\r\n")
    raw += await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert raw.count(b"HTTP/1.1 ") == 1


async def test_an_old_client_reads_to_the_end_of_the_connection(port: int) -> None:
    head = b"POST / HTTP/1.0\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 0\r\n\r\n"
    raw = await exchange(port, head)
    assert raw.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in raw
    assert raw.endswith(b"\r\n\r\nxx")
