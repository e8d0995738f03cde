"""The sending half of a request: what goes out, in how many pieces, and what is refused."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from shared.http.cycle import Cycle


class Wire(asyncio.Transport):
    """Keeps the pieces that were written."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


class Scene:
    """One request and its answer."""

    def __init__(
        self, *, method: str = "GET", version: str = "1.1", keep_alive: bool = True
    ) -> None:
        self.wire = Wire()
        self.ends = 0
        self.cycle = Cycle(
            scope={"type": "http", "method": method, "http_version": version},  # type: ignore[typeddict-item] # the rest is not read
            transport=self.wire,
            flow=FlowControl(self.wire),
            logger=logging.getLogger("test"),
            access_logger=logging.getLogger("test"),
            access_log=False,
            default_headers=[(b"date", b"today")],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=self._count,
        )

    def _count(self) -> None:
        self.ends += 1

    async def start(self, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        await self.cycle.send(
            {"type": "http.response.start", "status": status, "headers": list(headers)}
        )

    async def body(self, body: bytes, *, more: bool = False) -> None:
        await self.cycle.send({"type": "http.response.body", "body": body, "more_body": more})


HEAD = b"HTTP/1.1 200 OK\r\ndate: today\r\n"


async def test_a_whole_answer_is_one_write() -> None:
    scene = Scene()
    await scene.start((b"content-length", b"2"))
    await scene.body(b"ok")
    await asyncio.sleep(0)
    assert scene.wire.pieces == [HEAD + b"content-length: 2\r\n\r\nok"]
    assert scene.ends == 1
    assert not scene.wire.is_closed


async def test_a_head_does_not_wait_for_a_body_that_takes_its_time() -> None:
    scene = Scene()
    await scene.start()
    await asyncio.sleep(0)
    assert scene.wire.pieces == [HEAD + b"transfer-encoding: chunked\r\n\r\n"]
    await scene.body(b"first", more=True)
    await scene.body(b"", more=True)
    await scene.body(b"last")
    assert scene.wire.pieces[1:] == [b"5\r\nfirst\r\n", b"4\r\nlast\r\n0\r\n\r\n"]


async def test_a_stream_ends_with_an_empty_chunk() -> None:
    scene = Scene()
    await scene.start()
    await scene.body(b"one", more=True)
    await scene.body(b"")
    head = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    assert scene.wire.pieces == [head + b"3\r\none\r\n", b"0\r\n\r\n"]


async def test_an_old_client_gets_no_chunks() -> None:
    scene = Scene(version="1.0", keep_alive=False)
    await scene.start()
    await scene.body(b"one", more=True)
    await scene.body(b"", more=True)
    await scene.body(b"two")
    assert b"".join(scene.wire.pieces) == HEAD + b"connection: close\r\n\r\nonetwo"
    assert scene.wire.is_closed


async def test_an_old_client_gets_a_length_that_is_known() -> None:
    scene = Scene(version="1.0", keep_alive=False)
    await scene.start((b"content-length", b"2"))
    with pytest.raises(RuntimeError, match="longer"):
        await scene.body(b"one")


async def test_a_large_body_is_not_copied_behind_its_head() -> None:
    scene = Scene()
    body = b"x" * 100_000
    await scene.start((b"content-length", b"100000"))
    await scene.body(body)
    assert scene.wire.pieces == [HEAD + b"content-length: 100000\r\n\r\n", body]


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body(status: int) -> None:
    scene = Scene()
    await scene.start(status=status)
    await scene.body(b"")
    assert b"".join(scene.wire.pieces).endswith(b"date: today\r\n\r\n")


async def test_the_answer_to_head_is_a_head() -> None:
    scene = Scene(method="HEAD")
    await scene.start((b"content-length", b"5"))
    await scene.body(b"never")
    assert scene.wire.pieces == [HEAD + b"content-length: 5\r\n\r\n"]
    assert scene.ends == 1


@pytest.mark.parametrize("headers", [((b"connection", b"close"),), ()])
async def test_the_connection_closes_and_the_head_says_so(
    headers: tuple[tuple[bytes, bytes], ...],
) -> None:
    scene = Scene(keep_alive=bool(headers))
    await scene.start(*headers)
    await scene.body(b"ok")
    assert b"".join(scene.wire.pieces).count(b"connection: close\r\n") == 1
    assert scene.wire.is_closed


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b", b"a\x7f"])
async def test_a_header_with_control_characters_is_never_sent(value: bytes) -> None:
    scene = Scene()
    with pytest.raises(RuntimeError, match="control characters"):
        await scene.start((b"x-name", value))
    await asyncio.sleep(0)
    assert scene.wire.pieces == []
    await scene.start((b"content-length", b"5"), status=500)  # an error may still be told
    await scene.body(b"error")
    assert scene.wire.pieces[0].startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize(("length", "fault"), [(b"1", "longer"), (b"3", "shorter")])
async def test_a_body_that_is_not_as_long_as_it_says(length: bytes, fault: str) -> None:
    scene = Scene()
    await scene.start((b"content-length", length))
    with pytest.raises(RuntimeError, match=fault):
        await scene.body(b"ok")
    assert scene.ends == 0


async def test_messages_out_of_turn() -> None:
    scene = Scene()
    with pytest.raises(RuntimeError, match="out of turn"):
        await scene.body(b"early")
    await scene.start()
    with pytest.raises(RuntimeError, match="out of turn"):
        await scene.start()
    await scene.body(b"")
    with pytest.raises(RuntimeError, match="out of turn"):
        await scene.body(b"late")


async def test_a_client_that_left_gets_nothing_and_a_slow_one_is_waited_for() -> None:
    scene = Scene()
    await scene.start()
    scene.cycle.flow.pause_writing()
    sending = asyncio.create_task(scene.body(b"x", more=True))
    await asyncio.sleep(0)
    written: list[Any] = list(scene.wire.pieces)
    assert not sending.done()
    scene.cycle.disconnected = True
    scene.cycle.flow.resume_writing()
    await sending
    assert scene.wire.pieces == written


async def test_a_connection_that_closes_meanwhile_gets_no_head() -> None:
    scene = Scene()
    await scene.start()
    scene.wire.close()
    await asyncio.sleep(0)
    assert scene.wire.pieces == []


async def test_a_pushed_piece_is_a_chunk_and_an_empty_one_no_end() -> None:
    scene = Scene()
    with pytest.raises(RuntimeError, match="out of turn"):
        scene.cycle.push(b"early")
    await scene.start()
    scene.cycle.push(b"")
    scene.cycle.push(b"data")
    scene.cycle.push(b"more")
    await scene.body(b"")
    sent = HEAD + b"transfer-encoding: chunked\r\n\r\n4\r\ndata\r\n"
    assert scene.wire.pieces == [sent, b"4\r\nmore\r\n", b"0\r\n\r\n"]
    with pytest.raises(RuntimeError, match="out of turn"):
        scene.cycle.push(b"late")
    scene.cycle.disconnected = True
    scene.cycle.push(b"nobody there")
    assert len(scene.wire.pieces) == 3
