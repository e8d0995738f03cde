"""Streams that break, never begin or never end: one error, in bounded memory, and others are served."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from shared.testing.raw_client import connected, render_request
from tests.router.scenes import CHAT, chat, error_event_of, error_of
from tests.router.upstreams import (
    BODY,
    EVENT,
    GROWTH_MB,
    MIB,
    OK,
    SSE,
    SSE_HEAD,
    Answering,
    SharedScene,
    ask,
    body,
    bomb,
    for_ever,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]


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
    "a gzip bomb of one event": body([*SSE, ("content-encoding", "gzip")], bomb(b"x")),
}


@pytest.mark.parametrize("case", STREAMS)
async def test_a_broken_stream_ends_with_one_error(hostile: SharedScene, case: str) -> None:
    hostile.upstream.cases = dict(STREAMS)
    async with hostile.in_bounded_memory():
        answer = await ask(hostile.router, case, stream=True)
    if "bomb" in case:
        assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_failed")
        return
    assert answer.content.startswith(EVENT)
    assert error_event_of(answer.content)["message"]
    assert answer.content.count(b"\n\n") == 2
    assert b"\r" not in answer.content
    assert b"10.0.0.7" not in answer.content


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
    hostile: SharedScene, case: str, is_packed: bool
) -> None:
    if is_packed:
        packed = [*SSE, ("content-encoding", "gzip")]
        hostile.upstream.cases["x"] = body(packed, bomb(NOTHING[case]))
    else:
        hostile.upstream.cases["x"] = for_ever(
            SSE_HEAD, NOTHING[case] * (MIB // len(NOTHING[case]))
        )
    async with hostile.in_bounded_memory():
        answer = await ask(hostile.router, "x", stream=True)
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_failed")


@pytest.mark.parametrize("case", [*NOTHING, "events"])
async def test_a_stream_that_never_ends_goes_at_its_clients_pace_and_ends_with_it(
    hostile: SharedScene, case: str
) -> None:
    piece = NOTHING.get(case, EVENT)
    hostile.upstream.cases["x"] = for_ever(SSE_HEAD + EVENT, piece * (MIB // len(piece)))
    async with connected(hostile.router.base_url) as (reader, writer):
        request = render_request("POST", CHAT, chat(x="x", stream=True), {"host": "localhost"})
        writer.write(request)
        await reader.readuntil(EVENT)
        async with hostile.router.meanwhile(chat()):
            await asyncio.sleep(1.0)  # it does not read
        assert hostile.grown_mb() < GROWTH_MB
    await hostile.upstream.left()
    assert "internal_error" not in hostile.router.log()


async def test_the_end_of_a_stream_is_its_end(hostile: SharedScene) -> None:
    """Behind `[DONE]` the upstream may hang or go on: the client's body ends, and holds nothing of it."""
    done = EVENT + b"data: [DONE]\n\n"
    for behind in (b"", EVENT * 1000):
        hostile.upstream.cases["x"] = for_ever(SSE_HEAD + done, behind, 0.01)
        with anyio.fail_after(1):
            answer = await ask(hostile.router, "x", stream=True)
        assert answer.content == done
        await hostile.upstream.left()
