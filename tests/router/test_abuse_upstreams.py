"""Upstreams that answer what no upstream should: an error, in bounded memory, and others are served."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from shared.testing.raw_client import connected, render_request, split_answer
from shared.testing.wire import Exchange, WireServer
from tests.router.process import RouterProcess, router_process
from tests.router.scenes import CHAT, chat, error_event_of, error_of

MIB = 2**20
JSON = [("content-type", "application/json")]
SSE = [("content-type", "text/event-stream")]
CHUNK = (
    b'{"id":"a","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"x"}}]}'
)
EVENT = b"data: " + CHUNK + b"\n\n"
ANSWER = b'{"id":"a","object":"chat.completion","choices":[]}'
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BODY = b"content-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
# What the router may grow by, whatever comes: it holds at most 8 MiB of an answer.
GROWTH_MB = 64

Answering = Callable[[Exchange], Awaitable[None]]


def raw(data: bytes, times: int = 1) -> Answering:
    """Return what sends bytes as they are, and closes."""

    async def answering(exchange: Exchange) -> None:
        for _ in range(times):
            await exchange.send_raw(data)
        exchange.close()

    return answering


def for_ever(begin: bytes, piece: bytes, pause_s: float = 0.0) -> Answering:
    """Return what never stops to send."""

    async def answering(exchange: Exchange) -> None:
        await exchange.send_raw(begin)
        while True:
            await exchange.send_raw(piece)
            await asyncio.sleep(pause_s)

    return answering


def body(head: list[tuple[str, str]], *pieces: bytes, status: int = 200) -> Answering:
    """Return what sends pieces of a chunked body."""

    async def answering(exchange: Exchange) -> None:
        await exchange.send_head(status, head, length=None)
        for piece in pieces:
            await exchange.send_body(piece)
        await exchange.end_body()

    return answering


@cache
def bomb(unit: bytes, wbits: int = 31, size: int = 300 * MIB) -> bytes:
    """Return a small body that unpacks to a large one."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    block = unit * (MIB // len(unit))
    return b"".join(packer.compress(block) for _ in range(size // MIB)) + packer.flush()


class Upstream:
    """Serves the model `tiny` well, and each request that names a case as the case says."""

    def __init__(self) -> None:
        self.cases: dict[str, Answering] = {}
        self.open = 0
        self.server = WireServer(self._answer)

    async def _answer(self, exchange: Exchange) -> None:
        case = json.loads(exchange.request.body or b"{}").get("x")
        if case is None:
            await exchange.send_head(200, JSON, length=len(ANSWER))
            await exchange.send_body(ANSWER)
            return
        self.open += 1
        try:
            await self.cases[case](exchange)
        finally:
            self.open -= 1

    async def left(self, timeout_s: float = 2.0) -> None:
        """Wait until the router has closed what never ends."""
        with anyio.fail_after(timeout_s):
            while self.open:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def scene(
    home: Path, limits: Mapping[str, Any] | None = None, **environment: str
) -> AsyncIterator[tuple[RouterProcess, Upstream]]:
    """Start a router in front of an upstream; see `router_process`."""
    upstream = Upstream()
    url = await upstream.server.start("127.0.0.1", 0)
    quiet = {"ROUTER_BREAKER_FAILURES": "1000000", "ROUTER_PROBE_S": "0"}
    settings: dict[str, Any] = {**quiet, **environment}
    try:
        async with router_process(home, upstream=url, limits=limits, **settings) as router:
            yield router, upstream
    finally:
        await upstream.server.close()


async def ask(router: RouterProcess, case: str, *, stream: bool = False) -> httpx.Response:
    fields: dict[str, Any] = {"stream": True} if stream else {}
    with anyio.fail_after(15):
        return await router.client.post(CHAT, json=chat(x=case, **fields))


BROKEN_HEADS = {
    "headers without end": for_ever(OK, b"x-a: b\r\n" * 500),
    "a header without end": for_ever(OK + b"x-a: ", b"y" * 16_384),
    "a status line without end": for_ever(b"HTTP/1.1 200 ", b"y" * 16_384),
    "nothing but empty lines": for_ever(b"", b"\r\n" * 8192),
    "too many headers": raw(OK + b"x-a: b\r\n" * 300 + BODY),
    "a large head": raw(OK + b"x-a: " + b"y" * 70_000 + b"\r\n" + BODY),
    "interim answers without end": for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "early hints without end": for_ever(
        b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", 0.01
    ),
    "a switch of protocols": raw(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nxx"
    ),
    "a bare CR in a header": raw(OK + b"x-ratelimit-a: 1\rset-cookie: a=b\r\n" + BODY),
    "a NUL in a header": raw(OK + b"x-ratelimit-a: 1\x00\r\n" + BODY),
    "a folded header": raw(OK + b"x-ratelimit-a: 1\r\n set-cookie: a=b\r\n" + BODY),
    "length and chunks": raw(OK + b"transfer-encoding: chunked\r\n" + BODY),
    "two lengths": raw(OK + b"content-length: 1\r\n" + BODY),
    "an unknown transfer coding": raw(OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "brotli": body([*JSON, ("content-encoding", "br")], b"\x1b\x00\x00"),
    "gzip in gzip": body([*JSON, ("content-encoding", "gzip, gzip")], b"\x1f\x8b"),
    "gzip that is none": body([*JSON, ("content-encoding", "gzip")], ANSWER),
    "HTTP/0.9": raw(ANSWER),
    "HTTP/2": raw(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\x00" * 18),
    "TLS": raw(b"\x15\x03\x01\x00\x02\x02\x46"),
    "SSH": raw(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "a redirect": raw(b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\n" + BODY),
    "an impossible status": raw(OK.replace(b"200", b"799") + BODY),
    "a status of four digits": raw(OK.replace(b"200", b"2000") + BODY),
    "a status below 100": raw(OK.replace(b"200", b"099") + BODY),
    "a status that is no number": raw(OK.replace(b"200", b"OK!") + BODY),
    "half a body": raw(OK + b"content-length: 1000\r\n\r\n{"),
    "a length that nobody sends": raw(OK + b"content-length: 99999999999\r\n\r\n{"),
    "a length without end": raw(OK + b"content-length: " + b"9" * 40 + b"\r\n\r\n{"),
    "a chunk too large": raw(OK + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n{"),
    "a bad chunk": raw(OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n{"),
    "nested JSON": body(JSON, b'{"error":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "bad UTF-8": body(JSON, b'{"id":"\xff\xfe"}'),
    "a whole HTML page": body([("content-type", "text/html")], b"<html>http://10.0.0.7/</html>"),
    "nothing": body(JSON),
    "no answer": raw(b""),
}


async def test_a_broken_answer_is_an_error_of_ours(tmp_path: Path) -> None:
    async with scene(tmp_path) as (router, upstream):
        upstream.cases = dict(BROKEN_HEADS)
        await router.client.post(CHAT, json=chat())
        before = router.rss_mb()
        async with router.meanwhile(chat()):
            for case in BROKEN_HEADS:
                for stream in (False, True):
                    answer = await ask(router, case, stream=stream)
                    error = error_of(answer)
                    assert answer.status_code == 502, (case, answer.status_code, error)
                    assert error["code"] in {
                        "upstream_failed",
                        "upstream_interrupted",
                        "upstream_error",
                    }
                    assert "set-cookie" not in answer.headers, case
                    assert not any(word in answer.text for word in ("10.0.0", "169.254")), case
                    await upstream.left()
        assert router.rss_mb() - before < GROWTH_MB
        assert "internal_error" not in router.log()


async def test_errors_keep_a_status_that_exists(tmp_path: Path) -> None:
    """Whatever number an upstream makes up, the client gets one that means something."""
    async with scene(tmp_path) as (router, upstream):
        for status in (400, 402, 418, 429, 451, 499, 500, 503, 511, 520, 599, 600, 666, 999):
            upstream.cases["x"] = body(JSON, b'{"error":{"message":"m"}}', status=status)
            answer = await ask(router, "x")
            assert answer.status_code == (status if status < 600 else 502), status
            assert error_of(answer)["message"]
        for status in (201, 202, 203, 206, 226, 299):
            upstream.cases["x"] = body(JSON, ANSWER, status=status)
            assert (await ask(router, "x")).status_code == status
        for status in (204, 205):
            upstream.cases["x"] = raw(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
            assert (await ask(router, "x")).status_code in {status, 502}
        assert "internal_error" not in router.log()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["text/html", "application/json", "text/event-stream"])
async def test_an_error_without_end(tmp_path: Path, stream: bool, kind: str) -> None:
    async with scene(tmp_path) as (router, upstream):
        head = b"HTTP/1.1 500 No\r\ncontent-type: " + kind.encode() + b"\r\n\r\n"
        upstream.cases["x"] = for_ever(head, b" " * MIB)
        before = router.rss_mb()
        async with router.meanwhile(chat()):
            answer = await ask(router, "x", stream=stream)
        assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_failed")
        await upstream.left()
        assert router.rss_mb() - before < GROWTH_MB


def huge(piece: bytes, times: int = 200, begin: bytes = EVENT) -> Answering:
    return body(SSE, begin, *[piece] * times)


STREAMS = {
    "a line without end": huge(b"x" * MIB, begin=EVENT + b'data: {"a":"'),
    "a line without end in small pieces": huge(
        b"x" * 1400, times=6200, begin=EVENT + b'data: {"a":"'
    ),
    "fields without end": huge(b"x" * MIB, begin=EVENT + b"event: "),
    "nested JSON": huge(b"", 1, EVENT + b'data: {"error":' + b"[" * 100_000 + b"\n\n"),
    "no JSON": huge(b"", 1, EVENT + b"data: <html>http://10.0.0.7/</html>\n\n"),
    "bad UTF-8": huge(b"", 1, EVENT + b'data: {"a":"\xff"}\n\n'),
    "another answer": huge(OK + BODY, 1),
    "an end without [DONE]": huge(b"", 1),
    "an error with an end in its text": huge(
        b'data: {"error":{"message":"a\\n\\ndata: [DONE]\\n\\nevent: x"}}\n\n', 1
    ),
    "an error in another shape": huge(
        b'data: {"object":"error","message":"a\\r\\rdata: {}\\r\\r"}\n\n', 1
    ),
    "a gzip bomb of one event": body(
        [*SSE, ("content-encoding", "gzip")], bomb(b"x", size=100 * MIB)
    ),
}


@pytest.mark.parametrize("case", STREAMS)
async def test_a_broken_stream_ends_with_one_error(tmp_path: Path, case: str) -> None:
    async with scene(tmp_path) as (router, upstream):
        upstream.cases = dict(STREAMS)
        before = router.rss_mb()
        async with router.meanwhile(chat()):
            answer = await ask(router, case, stream=True)
        await upstream.left()
        if "bomb" in case:
            assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_failed")
        else:
            assert answer.content.startswith(EVENT)
            assert error_event_of(answer.content)["message"]
            assert answer.content.count(b"\n\n") == 2
            assert b"\r" not in answer.content
            assert b"10.0.0.7" not in answer.content
        assert router.rss_mb() - before < GROWTH_MB
        assert "internal_error" not in router.log()


NOTHING = {
    "comments": b": " + b"x" * 1000 + b"\n\n",
    "fields that are dropped": b"retry: 1\n\n" * 100,
    "empty events": b"data: \n\n" * 100,
    "pings": b"data: {}\n\n" * 100,
    "empty lines": b"\n" * 1000,
}


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.parametrize("is_packed", [False, True])
async def test_a_stream_that_never_comes_to_its_first_event(
    tmp_path: Path, case: str, is_packed: bool
) -> None:
    async with scene(tmp_path) as (router, upstream):
        if is_packed:
            packed = [*SSE, ("content-encoding", "gzip")]
            upstream.cases["x"] = body(packed, bomb(NOTHING[case], size=100 * MIB))
        else:
            upstream.cases["x"] = for_ever(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
                NOTHING[case] * (MIB // len(NOTHING[case])),
            )
        before = router.rss_mb()
        async with router.meanwhile(chat()):
            answer = await ask(router, "x", stream=True)
        assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_failed")
        await upstream.left()
        assert router.rss_mb() - before < GROWTH_MB


@pytest.mark.parametrize("case", [*NOTHING, "events"])
async def test_a_stream_that_never_ends_goes_at_its_clients_pace_and_ends_with_it(
    tmp_path: Path, case: str
) -> None:
    piece = NOTHING.get(case, EVENT)
    async with scene(tmp_path) as (router, upstream):
        upstream.cases["x"] = for_ever(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + EVENT,
            piece * (MIB // len(piece)),
        )
        before = router.rss_mb()
        async with connected(router.base_url) as (reader, writer):
            request = render_request("POST", CHAT, chat(x="x", stream=True), {"host": "localhost"})
            writer.write(request)
            await reader.readuntil(EVENT)
            async with router.meanwhile(chat()):
                await asyncio.sleep(1.0)  # it does not read
        await upstream.left()
        assert router.rss_mb() - before < GROWTH_MB


@pytest.mark.parametrize("case", ["plain", "gzip", "deflate"])
async def test_a_whole_answer_without_end_is_passed_on_in_bounded_memory(
    tmp_path: Path, case: str
) -> None:
    async with scene(tmp_path) as (router, upstream):
        if case == "plain":
            upstream.cases["x"] = for_ever(OK + b"\r\n", b" " * MIB)
        else:
            packed = bomb(b" ", 31 if case == "gzip" else 15)
            assert len(packed) < MIB
            upstream.cases["x"] = body([*JSON, ("content-encoding", case)], packed)
        before = router.rss_mb()
        taken = 0
        async with router.meanwhile(chat()):
            async with router.client.stream("POST", CHAT, json=chat(x="x")) as answer:
                assert answer.status_code == 200
                async for piece in answer.aiter_raw():
                    taken += len(piece)
                    if taken > 100 * MIB:
                        break
            assert taken > 100 * MIB
            await upstream.left()
            # and one that is not read at all
            async with connected(router.base_url) as (_, writer):
                writer.write(render_request("POST", CHAT, chat(x="x"), {"host": "localhost"}))
                await asyncio.sleep(0.5)
        await upstream.left()
        assert router.rss_mb() - before < GROWTH_MB


async def test_rubbish_behind_a_packed_answer_is_bounded(tmp_path: Path) -> None:
    async with scene(tmp_path) as (router, upstream):
        packer = zlib.compressobj(wbits=31)
        whole = packer.compress(ANSWER) + packer.flush()
        upstream.cases["x"] = body(
            [*JSON, ("content-encoding", "gzip")], whole, *[b"x" * MIB] * 150
        )
        before = router.rss_mb()
        async with router.meanwhile(chat()):
            answer = await ask(router, "x")
        assert answer.status_code in {200, 502}
        await upstream.left()
        assert router.rss_mb() - before < GROWTH_MB


DRIPS = {
    "a head": (for_ever(b"HTTP/1.1 200 OK\r\nx: ", b"y", 0.05), 504),
    "a body": (for_ever(OK + b"content-length: 100000\r\n\r\n", b" ", 0.05), 504),
    "nothing": (for_ever(b"", b"", 0.05), 504),
}


@pytest.mark.parametrize("case", DRIPS)
async def test_an_upstream_that_drips_has_a_limit(tmp_path: Path, case: str) -> None:
    limits: dict[str, Any] = {"ROUTER_FIRST_BYTE_TIMEOUT_S": "1", "ROUTER_TOTAL_TIMEOUT_S": "2"}
    async with scene(tmp_path, **limits) as (router, upstream):
        upstream.cases["x"], status = DRIPS[case]
        async with router.meanwhile(chat()):
            answer = await ask(router, "x")
        assert (answer.status_code, error_of(answer)["code"]) == (status, "upstream_timeout")
        await upstream.left()


async def test_nothing_behind_an_answer_reaches_another_client(tmp_path: Path) -> None:
    """Response splitting: a second answer on a kept connection is nobody's."""
    async with scene(tmp_path) as (router, upstream):
        forged = ANSWER.replace(b'"a"', b'"z"')
        upstream.cases["x"] = raw_kept(OK + BODY + OK + BODY.replace(ANSWER, forged))
        for _ in range(5):
            assert (await ask(router, "x")).content == ANSWER
            assert (await router.client.post(CHAT, json=chat())).content == ANSWER


def raw_kept(data: bytes) -> Answering:
    async def answering(exchange: Exchange) -> None:
        await exchange.send_raw(data)

    return answering


async def test_the_end_of_a_stream_is_its_end(tmp_path: Path) -> None:
    """Behind `[DONE]` the upstream may hang or go on: the client's body ends, and holds nothing of it."""
    async with scene(tmp_path) as (router, upstream):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
        done = EVENT + b"data: [DONE]\n\n"
        for behind in (b"", EVENT * 1000):
            upstream.cases["x"] = for_ever(head + done, behind, 0.01)
            with anyio.fail_after(1):
                answer = await ask(router, "x", stream=True)
            assert answer.content == done
            await upstream.left()


async def test_a_requests_values_bring_no_line_of_their_own(tmp_path: Path) -> None:
    """Neither into the upstream's request, nor into the answer, nor into the log."""
    seen: list[Exchange] = []

    async def keep(exchange: Exchange) -> None:
        seen.append(exchange)
        await exchange.send_head(200, JSON, length=len(ANSWER))
        await exchange.send_body(ANSWER)

    async with scene(tmp_path, LOG_JSON="true") as (router, upstream):
        upstream.cases["x"] = keep
        forged = {
            "x-request-id": "a b",
            "traceparent": "00-a-b-01",
            "x-upstream": "http://10.0.0.7",
        }
        answer = await router.client.post(CHAT, json=chat(x="x"), headers=forged)
        assert answer.headers["x-request-id"].startswith("req_")
        names = [name for name, _ in seen[0].request.headers]
        assert len(names) == len(set(names))
        assert not {"x-upstream", "authorization", "cookie"} & set(names)
        for model in (
            "a\r\nset-cookie: a=b",
            "a\n\ndata: [DONE]\n\n",
            'a","level":"error',
            "\u2028",
        ):
            answer = await router.client.post(CHAT, json=chat(model, stream=True))
            assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")
            assert "set-cookie" not in answer.headers
        for target in (b"/%0d%0aset-cookie:%20a=b", b"/%0a%0adata:%20x", b"/\xe2\x80\xa8"):
            async with connected(router.base_url) as (reader, writer):
                writer.write(
                    b"GET " + target + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
                )
                head, _ = split_answer(await reader.read())
                assert head.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
                assert b"set-cookie" not in head
        for line in router.log().split("\n"):
            assert not line or isinstance(json.loads(line), dict)
