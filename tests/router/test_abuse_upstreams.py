"""Upstreams that answer what no upstream should: an error, in bounded memory, and others are served."""

from __future__ import annotations

import asyncio
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from shared.testing.raw_client import connected, render_request, split_answer
from shared.testing.wire import Exchange
from tests.router.scenes import CHAT, chat, error_of
from tests.router.upstreams import (
    ANSWER,
    BODY,
    JSON,
    MIB,
    OK,
    Answering,
    SharedScene,
    ask,
    body,
    bomb,
    for_ever,
    raw,
    scene,
)

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


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_broken_answer_is_an_error_of_ours(hostile: SharedScene, stream: bool) -> None:
    hostile.upstream.cases = dict(BROKEN_HEADS)
    async with hostile.in_bounded_memory():
        for case in BROKEN_HEADS:
            answer = await ask(hostile.router, case, stream=stream)
            error = error_of(answer)
            assert answer.status_code == 502, (case, answer.status_code, error)
            assert error["code"] in {"upstream_failed", "upstream_interrupted", "upstream_error"}
            assert "set-cookie" not in answer.headers, case
            assert not any(word in answer.text for word in ("10.0.0", "169.254")), case
            await hostile.upstream.left()


@pytest.mark.asyncio(loop_scope="module")
async def test_errors_keep_a_status_that_exists(hostile: SharedScene) -> None:
    """Whatever number an upstream makes up, the client gets one that means something."""
    router, cases = hostile.router, hostile.upstream.cases
    for status in (400, 418, 429, 451, 499, 500, 503, 511, 520, 599, 600, 666, 999):
        cases["x"] = body(JSON, b'{"error":{"message":"m"}}', status=status)
        answer = await ask(router, "x")
        assert answer.status_code == (status if status < 600 else 502), status
        assert error_of(answer)["message"]
    for status in (401, 402, 403, 407):  # the operator's business, not the client's
        cases["x"] = body(JSON, b'{"error":{"message":"m"}}', status=status)
        assert (await ask(router, "x")).status_code == 502
    for status in (201, 202, 203, 206, 226, 299):
        cases["x"] = body(JSON, ANSWER, status=status)
        assert (await ask(router, "x")).status_code == status
    for status in (204, 205):
        cases["x"] = raw(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
        assert (await ask(router, "x")).status_code in {status, 502}
    assert "internal_error" not in router.log()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["text/html", "application/json", "text/event-stream"])
async def test_an_error_without_end(hostile: SharedScene, stream: bool, kind: str) -> None:
    head = b"HTTP/1.1 500 No\r\ncontent-type: " + kind.encode() + b"\r\n\r\n"
    hostile.upstream.cases["x"] = for_ever(head, b" " * MIB)
    async with hostile.in_bounded_memory():
        answer = await ask(hostile.router, "x", stream=stream)
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_failed")


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", ["plain", "gzip", "deflate"])
async def test_a_whole_answer_without_end_is_passed_on_in_bounded_memory(
    hostile: SharedScene, case: str
) -> None:
    router, upstream = hostile.router, hostile.upstream
    if case == "plain":
        upstream.cases["x"] = for_ever(OK + b"\r\n", b" " * MIB)
    else:
        packed = bomb(b" ", 31 if case == "gzip" else 15)
        assert len(packed) < MIB
        upstream.cases["x"] = body([*JSON, ("content-encoding", case)], packed)
    taken = 0
    async with hostile.in_bounded_memory():
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


@pytest.mark.asyncio(loop_scope="module")
async def test_rubbish_behind_a_packed_answer_is_bounded(hostile: SharedScene) -> None:
    packer = zlib.compressobj(wbits=31)
    whole = packer.compress(ANSWER) + packer.flush()
    packed = [*JSON, ("content-encoding", "gzip")]
    hostile.upstream.cases["x"] = body(packed, whole, *[b"x" * MIB] * 150)
    async with hostile.in_bounded_memory():
        answer = await ask(hostile.router, "x")
    assert answer.status_code in {200, 502}


DRIPS = {
    "a head": for_ever(b"HTTP/1.1 200 OK\r\nx: ", b"y", 0.05),
    "a body": for_ever(OK + b"content-length: 100000\r\n\r\n", b" ", 0.05),
    "nothing": for_ever(b"", b"", 0.05),
}


@pytest.mark.slow
async def test_an_upstream_that_drips_has_a_limit(tmp_path: Path) -> None:
    limits: dict[str, Any] = {"ROUTER_FIRST_BYTE_TIMEOUT_S": "1", "ROUTER_TOTAL_TIMEOUT_S": "2"}
    async with scene(tmp_path, **limits) as (router, upstream):
        upstream.cases = dict(DRIPS)
        async with router.meanwhile(chat()):
            answers = await asyncio.gather(*(ask(router, case) for case in DRIPS))
        for case, answer in zip(DRIPS, answers, strict=True):
            assert (answer.status_code, error_of(answer)["code"]) == (504, "upstream_timeout"), case
        await upstream.left()


@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_behind_an_answer_reaches_another_client(hostile: SharedScene) -> None:
    """Response splitting: a second answer on a kept connection is nobody's."""
    forged = ANSWER.replace(b'"a"', b'"z"')
    hostile.upstream.cases["x"] = raw_kept(OK + BODY + OK + BODY.replace(ANSWER, forged))
    for _ in range(5):
        assert (await ask(hostile.router, "x")).content == ANSWER
        assert (await hostile.router.client.post(CHAT, json=chat())).content == ANSWER


def raw_kept(data: bytes) -> Answering:
    async def answering(exchange: Exchange) -> None:
        await exchange.send_raw(data)

    return answering


@pytest.mark.slow
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
