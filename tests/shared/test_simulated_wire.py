"""The wire under the simulated engine: raw sockets against the small HTTP server."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.testing.engine import SimulatedEngine, running
from shared.testing.raw_client import call_raw, connected, render_request, split_answer
from shared.testing.wire import Exchange, WireServer

PATH = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "hi"}]}


async def read_one(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head, await reader.readexactly(length)


async def test_one_connection_serves_many_requests() -> None:
    engine = SimulatedEngine()
    async with running(engine) as base_url, connected(base_url) as (reader, writer):
        for _ in range(3):
            writer.write(render_request("GET", "/version", headers={"connection": "keep-alive"}))
            head, body = await read_one(reader)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"simulated" in body
    assert [seen.connection for seen in engine.requests] == [1, 1, 1]


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running(SimulatedEngine()) as base_url, connected(base_url) as (reader, writer):
        keep = {"connection": "keep-alive"}
        writer.write(
            render_request("GET", "/version", headers=keep)
            + render_request("GET", "/nope", headers=keep)
        )
        assert (await read_one(reader))[0].startswith(b"HTTP/1.1 200")
        assert (await read_one(reader))[0].startswith(b"HTTP/1.1 404")


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(cuts=st.lists(st.integers(min_value=1, max_value=200), max_size=6))
def test_a_request_may_come_in_any_pieces(cuts: list[int]) -> None:
    async def scenario() -> None:
        raw = render_request("POST", PATH, ASK)
        engine = SimulatedEngine()
        async with running(engine) as base_url, connected(base_url) as (reader, writer):
            edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
            for start, end in itertools.pairwise(edges):
                writer.write(raw[start:end])
                await asyncio.sleep(0)
            assert (await reader.read(16)).startswith(b"HTTP/1.1 200")
        assert engine.requests[0].body == ASK

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"this is no http\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", b"501"),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", b"400"),
    ],
)
async def test_what_is_no_request_is_refused(raw: bytes, status: bytes) -> None:
    async with running(SimulatedEngine()) as base_url, connected(base_url) as (reader, writer):
        writer.write(raw)
        assert (await reader.read()).startswith(b"HTTP/1.1 " + status)


async def test_a_body_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.testing.wire.MAX_BODY_BYTES", 10)
    async with running(SimulatedEngine()) as base_url:
        assert (await call_raw(base_url, PATH, b"x" * 11)).startswith(b"HTTP/1.1 413")


async def test_a_client_that_waits_is_invited_to_send_its_body() -> None:
    async with running(SimulatedEngine()) as base_url, connected(base_url) as (reader, writer):
        raw = render_request("POST", PATH, ASK, {"expect": "100-continue"})
        head, _, body = raw.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(body)
        assert (await reader.read(12)) == b"HTTP/1.1 200"


async def test_http_1_0_gets_no_chunks() -> None:
    async with running(SimulatedEngine()) as base_url, connected(base_url) as (reader, writer):
        raw = render_request("POST", PATH, {**ASK, "stream": True})
        writer.write(raw.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body.endswith(b"data: [DONE]\n\n")


async def test_headers_repeat_and_the_body_is_kept_as_it_came() -> None:
    engine = SimulatedEngine()
    raw = b'{"messages": [ {"role":"user","content":"hi"} ], "top_k": 1e2}'
    async with running(engine) as base_url:
        await call_raw(base_url, f"{PATH}?a=b", raw, headers={"X-One": "1", "x-two": "2"})
    (seen,) = engine.requests
    assert (seen.raw, seen.path, seen.target) == (raw, PATH, f"{PATH}?a=b")
    assert seen.header("x-one") == "1"
    assert seen.header("x-none") is None


async def test_a_slow_reader_holds_the_writer_back() -> None:
    sent = 0

    async def pour(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send_head(200, [], length=None)
        for _ in range(1000):
            await exchange.send_body(b"x" * 65536)
            sent += 1
        await exchange.end_body()

    server = WireServer(pour)
    base_url = await server.start("127.0.0.1", 0)
    async with connected(base_url) as (reader, writer):
        writer.write(render_request("GET", "/"))
        await reader.readexactly(100)
        for _ in range(500):
            await asyncio.sleep(0)
        held_at = sent
        assert held_at < 1000
        _, body = split_answer(b"HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\n")
        assert body == b""
        total = 100 + len(await reader.read())
    assert sent == 1000
    assert total > 1000 * 65536
    await server.close()
    await server.close()


async def test_an_ipv6_address_stands_in_brackets() -> None:
    server = WireServer(SimulatedEngine().handle)
    try:
        base_url = await server.start("::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert base_url.startswith("http://[::1]:")
    assert b" 200 OK" in await call_raw(base_url, "/health", method="GET")
    await server.close()


async def test_a_mistake_in_a_handler_comes_to_light() -> None:
    async def fail(exchange: Exchange) -> None:
        raise ZeroDivisionError(exchange.request.path)

    server = WireServer(fail)
    base_url = await server.start("127.0.0.1", 0)
    assert await call_raw(base_url, "/x") == b""
    await server.close()
    assert [str(error) for error in server.failures] == ["/x"]


async def test_running_raises_what_a_handler_raised() -> None:
    engine = SimulatedEngine(clock=lambda: 0.0)
    engine.options = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        async with running(engine) as base_url:
            await call_raw(base_url, "/health", method="GET")
