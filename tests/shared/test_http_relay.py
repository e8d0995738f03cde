"""From reply to client: the watch over the connection, and what an upstream's failure becomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from starlette.types import Message

from shared.http.asgi import ClientGone
from shared.http.errors import UpstreamInterrupted
from shared.http.exchange import Reply
from shared.http.relay import relay, while_connected


class Connection:
    """A client: `leave` makes it go away."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    def leave(self) -> None:
        self._gone.set()

    async def receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}


async def send_all(*parts: bytes, error: Exception | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if error is not None:
        raise error


async def relayed(reply: Reply) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await relay(reply, send, [(b"x-own", b"1")])
    return sent


def stream_of(*parts: bytes, error: Exception | None = None) -> Reply:
    headers = [(b"content-type", b"text/event-stream")]
    return Reply(200, headers, send_all(*parts, error=error), is_stream=True)


async def test_a_stream_leaves_chunk_by_chunk_with_its_headers() -> None:
    sent = await relayed(stream_of(b"data: 1\n\n", b"data: 2\n\n"))
    assert sent[0]["status"] == 200
    assert sent[0]["headers"] == [
        (b"content-type", b"text/event-stream"),
        (b"x-own", b"1"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),
    ]
    assert [(message["body"], message["more_body"]) for message in sent[1:]] == [
        (b"data: 1\n\n", True),
        (b"data: 2\n\n", True),
        (b"", False),
    ]


async def test_a_whole_answer_leaves_at_once_with_its_length() -> None:
    reply = Reply(201, [(b"content-type", b"application/json")], send_all(), False, b"{}")
    sent = await relayed(reply)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert (b"content-length", b"2") in sent[0]["headers"]
    assert sent[1]["body"] == b"{}"


async def test_a_stream_that_breaks_off_ends_with_one_error_event() -> None:
    sent = await relayed(stream_of(b"data: 1\n\n", error=UpstreamInterrupted("broke off")))
    bodies = [message["body"] for message in sent[1:]]
    assert bodies[0] == b"data: 1\n\n"
    error = json.loads(bodies[1].removeprefix(b"data: "))["error"]
    assert error["code"] == "upstream_interrupted"
    assert bodies[2:] == [b""]
    assert sent[-1]["more_body"] is False


async def test_a_long_plain_answer_that_breaks_off_is_never_ended() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    reply = Reply(200, [], send_all(b"part", error=UpstreamInterrupted("broke off")), False)
    with pytest.raises(UpstreamInterrupted):
        await relay(reply, send)
    assert all(message.get("more_body", True) for message in sent)


async def test_a_client_that_leaves_cancels_the_block() -> None:
    client = Connection()
    closed: list[str] = []
    with pytest.raises(ClientGone), anyio.fail_after(1):
        async with while_connected({}, client.receive):
            try:
                asyncio.get_running_loop().call_soon(client.leave)
                await anyio.sleep_forever()
            finally:
                closed.append("closed")
    assert closed == ["closed"]


async def test_a_client_that_left_before_cancels_the_block_too() -> None:
    client = Connection()
    client.leave()
    with pytest.raises(ClientGone), anyio.fail_after(1):
        async with while_connected({}, client.receive):
            await anyio.sleep_forever()


async def test_messages_that_are_no_disconnect_are_passed_over() -> None:
    messages: list[Message] = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        return messages.pop(0)

    with pytest.raises(ClientGone), anyio.fail_after(1):
        async with while_connected({}, receive):
            await anyio.sleep_forever()


async def test_an_answered_request_is_not_cancelled_by_the_end_of_its_connection() -> None:
    client = Connection()
    async with while_connected({}, client.receive) as stop_watching:
        client.leave()
        stop_watching()
        await anyio.sleep(0.01)


async def test_an_error_in_the_block_passes_and_ends_the_watch() -> None:
    before = len(asyncio.all_tasks())
    with pytest.raises(UpstreamInterrupted):
        async with while_connected({}, Connection().receive):
            raise UpstreamInterrupted("broke off")
    await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == before


async def test_a_cancellation_from_outside_is_no_client_that_left() -> None:
    async def serve() -> Any:
        async with while_connected({}, Connection().receive):
            await anyio.sleep_forever()

    task = asyncio.create_task(serve())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def endless() -> AsyncIterator[bytes]:
    yield b"data: {}\n\n"
    await asyncio.sleep(60)


async def cut_off(reply: Reply) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    task = asyncio.ensure_future(relay(reply, send))
    while len(sent) < 2:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return sent


async def test_a_stream_that_the_service_ends_says_so() -> None:
    sent = await cut_off(Reply(200, [], endless(), is_stream=True))
    assert b'"code":"shutting_down"' in sent[-2]["body"]
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_another_answer_that_the_service_ends_is_not_passed_off_as_whole() -> None:
    sent = await cut_off(Reply(200, [], endless(), is_stream=False))
    assert all(message.get("more_body", True) for message in sent)
