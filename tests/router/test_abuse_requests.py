"""Requests that two servers in a row might cut differently: never two answers, never a tail."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest

from shared.kit.logs import configure_logs
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.steps import Latency
from tests.router.harness import StartRouter
from tests.router.process import router_process
from tests.router.scenes import CHAT, chat, error_of, one_engine, settled

BODY = json.dumps(chat()).encode()
LENGTH = str(len(BODY)).encode()
# what an attacker hides behind a body: another request
TAIL = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)
TAIL += b"Content-Length: " + LENGTH + b"\r\n\r\n" + BODY.replace(b"hello", b"hidde")
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def head(*lines: bytes, end: bytes = b"\r\n") -> bytes:
    first = b"POST " + CHAT.encode() + b" HTTP/1.1"
    fixed = (first, b"Host: localhost", b"Content-Type: application/json")
    return end.join([*fixed, *lines, b"", b""])


TE = b"Transfer-Encoding: chunked"
SMUGGLED = {
    "length and chunks": head(b"Content-Length: " + LENGTH, TE) + CHUNKED,
    "chunks and length": head(TE, b"Content-Length: 4") + CHUNKED,
    "chunks twice": head(TE, TE) + CHUNKED,
    "chunks and identity": head(TE, b"Transfer-Encoding: identity") + CHUNKED,
    "identity and chunks": head(b"Transfer-Encoding: identity", TE) + CHUNKED,
    "identity": head(b"Transfer-Encoding: identity", b"Content-Length: " + LENGTH) + BODY,
    "chunked is not last": head(b"Transfer-Encoding: chunked, identity") + CHUNKED,
    "an unknown coding": head(b"Transfer-Encoding: xchunked") + CHUNKED,
    "gzip and chunked": head(b"Transfer-Encoding: gzip, chunked") + CHUNKED,
    "chunks with a tab": head(b"Transfer-Encoding:\tchunked", b"Content-Length: 4") + CHUNKED,
    "chunks with a space before the colon": head(b"Transfer-Encoding : chunked") + CHUNKED,
    "a length with a space before the colon": head(b"Content-Length : " + LENGTH) + BODY,
    "two lengths": head(b"Content-Length: " + LENGTH, b"Content-Length: 0") + BODY,
    "the same length twice": head(*[b"Content-Length: " + LENGTH] * 2) + BODY,
    "a list of lengths": head(b"Content-Length: " + LENGTH + b", " + LENGTH) + BODY,
    "a signed length": head(b"Content-Length: +" + LENGTH) + BODY,
    "a negative length": head(b"Content-Length: -1") + BODY,
    "a length in hex": head(b"Content-Length: 0x10") + BODY,
    "a length with a space in it": head(b"Content-Length: 1 0") + BODY,
    "no number as a length": head(b"Content-Length: ten") + BODY,
    "an empty length": head(b"Content-Length:") + BODY,
    "a length without end": head(b"Content-Length: " + b"9" * 40) + BODY,
    "a chunk's size with a sign": head(TE) + b"+" + CHUNKED,
    "a chunk's size as no number": head(TE) + b"zz\r\n" + BODY,
    "a chunk's size with 0x": head(TE) + b"0x" + CHUNKED,
    "a chunk's size too large": head(TE) + b"f" * 17 + b"\r\n" + BODY,
    "a chunk without its end": head(TE) + b"5\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a chunk's size with a bare LF": head(TE) + CHUNKED.replace(b"\r\n", b"\n"),
    "a folded header": head(b"X: a", b" Content-Length: " + LENGTH) + BODY,
    "a folded coding": head(b"Transfer-Encoding:", b" chunked") + CHUNKED,
    "bare LF": head(b"Content-Length: " + LENGTH, end=b"\n") + BODY,
    "bare CR": head(b"X: a\rContent-Length: " + LENGTH) + BODY,
    "NUL in a header": head(b"X: a\x00b", b"Content-Length: " + LENGTH) + BODY,
    "a space in a header's name": head(b"X Y: a", b"Content-Length: " + LENGTH) + BODY,
    "a header without a name": head(b": a", b"Content-Length: " + LENGTH) + BODY,
    "no length": head() + BODY,
}


async def answers(port: int, data: bytes, *, silence_s: float = 0.5, until: int = 0) -> bytes:
    """Send bytes; return what comes back until the end, a silence, or so many whole answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = bytearray()
    try:
        writer.write(data)
        while piece := await asyncio.wait_for(reader.read(65536), silence_s):
            found += piece
            if until and found.count(b'"usage"') == until:
                break
    except (ConnectionError, asyncio.TimeoutError):
        pass
    finally:
        writer.transport.abort()
    return bytes(found)


async def test_what_can_be_cut_in_two_ways_has_one_answer(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        port = int(scene.router.base_url.rpartition(":")[2])
        for name, data in SMUGGLED.items():
            for tail in (b"", TAIL):
                raw = await answers(port, data + tail)
                assert raw.startswith(b"HTTP/1.1 400 "), (name, raw)
                assert raw.count(b"HTTP/1.1") == 1, (name, raw)
                assert b'"error":{' in raw, name
        assert scene.engine.requests == []


async def test_two_plain_requests_have_two_answers(start_router: StartRouter) -> None:
    """What the cases above would be without their oddity."""
    async with one_engine(start_router) as scene:
        port = int(scene.router.base_url.rpartition(":")[2])
        plain = (head(b"Content-Length: " + LENGTH) + BODY, head(TE) + CHUNKED)
        for data in plain:
            raw = await answers(port, data + TAIL, until=2)
            assert raw.count(b"HTTP/1.1 200 ") == 2
        assert [b"hidde" in seen.raw for seen in scene.engine.requests] == [False, True] * 2


RUBBISH = {
    "rubbish": b"rubbish\r\n\r\n",
    "half a head": TAIL[:40],
    "a body with a bad chunk": head(TE) + b"zz\r\n" + BODY,
    "a large head": head(b"X: " + b"y" * 70_000),
}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_good_request_is_answered_and_nothing_behind_it(
    start_router: StartRouter, stream: bool
) -> None:
    options = EngineOptions(models=("tiny",), latency=Latency(ttft_s=0.05, itl_s=0.005))
    logs = io.StringIO()
    configure_logs(stream=logs, json=True)
    async with one_engine(start_router, options) as scene:
        port = int(scene.router.base_url.rpartition(":")[2])
        body = json.dumps(chat(stream=stream)).encode()
        good = head(b"Content-Length: %d" % len(body)) + body
        for count in (1, 2):
            for name, rubbish in RUBBISH.items():
                raw = await answers(port, good * count + rubbish, silence_s=0.3)
                found = (raw.count(b"HTTP/1.1 200 "), raw.count(b"HTTP/1.1 "))
                assert found == (count, count), (name, raw)
                assert raw.endswith(b"[DONE]\n\n\r\n0\r\n\r\n" if stream else b"}"), (name, raw)
        await settled(scene.router)
    assert "internal_error" not in logs.getvalue()


async def test_whoever_breaks_their_own_body_off_is_served_no_further(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router) as scene:
        port = int(scene.router.base_url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(TE) + b"%x\r\n%b\r\n" % (len(BODY), BODY))
        await asyncio.sleep(0.02)  # the body is being read
        writer.write(b"zz\r\n" + TAIL)
        raw = await asyncio.wait_for(reader.read(), 3)
        writer.close()
        assert raw.startswith(b"HTTP/1.1 400 ")
        assert raw.count(b"HTTP/1.1") == 1
        assert scene.engine.requests == []


async def test_a_body_that_is_too_long_is_not_even_invited(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        port = int(scene.router.base_url.rpartition(":")[2])
        expect = head(b"Expect: 100-continue", b"Content-Length: 10000000000")
        raw = await answers(port, expect)
        assert raw.startswith(b"HTTP/1.1 413 ")
        assert b"100 Continue" not in raw


async def test_no_tunnel_is_made(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        port = int(scene.router.base_url.rpartition(":")[2])
        upgrade = b"Host: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        for data in (
            b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /v1/realtime HTTP/1.1\r\n" + upgrade,
            b"GET " + CHAT.encode() + b" HTTP/1.1\r\n" + upgrade,
        ):
            raw = await answers(port, data + TAIL)
            assert raw.startswith(b"HTTP/1.1 4"), raw
            assert raw.count(b"HTTP/1.1") == 1, raw
        assert scene.engine.requests == []


MODEL = b'{"model":"tiny","messages":'
BODIES = {
    "nested lists": MODEL + b"[" * 2_000_000,
    "nested lists that end": MODEL + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}",
    "nested objects": MODEL + b'{"a":' * 500_000 + b"1" + b"}" * 500_000 + b"}",
    "a key without end": b'{"' + b"k" * 4_000_000,
    "a text without end": MODEL + b'"' + b"\\u0000" * 500_000,
    "a lone surrogate": MODEL.replace(b"tiny", b"ti\\ud800ny") + b"[]}",
    "bad UTF-8": MODEL + b'"\xc3\x28"}',
    "UTF-16": (MODEL + b"[]}").decode().encode("utf-16"),
    "NaN": MODEL + b"[NaN]}",
    "Infinity": MODEL + b"[-Infinity]}",
    "no object": b"[" + MODEL + b"[]}]",
    "something behind it": MODEL + b"[]}{}",
    "nothing but white space": b" " * 4_000_000,
}
# The upstream judges what is valid JSON: it came through byte for byte.
VALID = {
    "a large number": MODEL + b"[" + b"9" * 1_000_000 + b"]}",
    "a large exponent": MODEL + b"[1e999999999]}",
    "many keys": MODEL + b"[]," + b",".join(b'"k%d":1' % n for n in range(100_000)) + b"}",
    "the same key many times": MODEL + b"[]" + b',"k":1' * 100_000 + b"}",
}


@pytest.mark.slow
async def test_odd_bodies_hold_nobody_up(tmp_path: Path) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with (
        running(engine) as upstream,
        router_process(tmp_path, upstream=upstream) as router,
        router.meanwhile(),
    ):
        headers = {"content-type": "application/json"}
        memory = router.rss_mb()
        for name, body in BODIES.items():
            answer = await router.client.post(CHAT, content=body, headers=headers)
            error = error_of(answer)
            assert (answer.status_code, error["type"]) == (400, "invalid_request_error"), name
        assert engine.requests == []
        for name, body in VALID.items():
            await router.client.post(CHAT, content=body, headers=headers)
            assert engine.requests[-1].raw.startswith(MODEL), name
        assert router.rss_mb() - memory < 100


@pytest.mark.slow
async def test_the_model_that_was_checked_is_the_one_that_is_sent(tmp_path: Path) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with (
        running(engine) as upstream,
        router_process(tmp_path, upstream=upstream) as router,
    ):
        headers = {"content-type": "application/json"}
        for key in (b'"model"', b'"mod\\u0065l"'):
            body = b'{"model":"secret","messages":[],' + key + b':"tiny"}'
            await router.client.post(CHAT, content=body, headers=headers)
            sent = json.loads(engine.requests[-1].raw, object_pairs_hook=list)
            assert [value for name, value in sent if name == "model"] == ["tiny"]
            body = b'{"model":"tiny","messages":[],' + key + b':"secret"}'
            answer = await router.client.post(CHAT, content=body, headers=headers)
            assert answer.status_code == 404
        assert len(engine.requests) == 2
