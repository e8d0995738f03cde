"""Whatever an upstream sends, and however it is cut: a whole answer or an error of ours, in time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.http.errors import ApiError, UpstreamFailed, UpstreamInterrupted, UpstreamTimeout
from shared.http.lean_connection import LeanConnection
from shared.http.lean_request import Target
from shared.http.lean_transport import LeanTransport
from shared.http.transport import OutboundRequest, Timeouts

SHORT = Timeouts(connect_s=1, first_byte_s=0.02, idle_s=0.02)
LONG = Timeouts(connect_s=10, first_byte_s=10, idle_s=10)
PROBE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nprobe"


@dataclass(frozen=True)
class Answer:
    """Bytes of a valid answer, and what they mean."""

    wire: bytes
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    needs_eof: bool = False


class Wire(asyncio.Transport):
    """A connection to an upstream that answers each request with the next of its scripts."""

    def __init__(self, scripts: list[list[bytes]], ending: str) -> None:
        super().__init__()
        self._scripts = scripts
        self._ending = ending
        self._waiting: list[bytes] = []
        self._is_paused = self._is_closed = False
        self.protocol: LeanConnection

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._waiting += self._scripts.pop(0)
        self._soon()

    def abort(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        self._soon()

    def _soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        if self._is_closed or self._is_paused:
            return
        if self._waiting:
            self.protocol.data_received(self._waiting.pop(0))
            self._soon()
        elif self._ending == "eof" and not self._scripts:
            self.protocol.eof_received()
            self.abort()
        elif self._ending == "reset" and not self._scripts:
            self._is_closed = True
            self.protocol.connection_lost(ConnectionResetError())


class Wired(LeanTransport):
    """A lean transport whose connections are wires."""

    def __init__(self, *wires: Wire) -> None:
        super().__init__()
        waiting = list(wires)

        async def connect(
            _loop: asyncio.AbstractEventLoop, connection: LeanConnection, _target: Target
        ) -> None:
            wire = waiting.pop(0)
            wire.protocol = connection
            connection.connection_made(wire)

        self._dialer._connect = connect  # type: ignore[assignment]


async def outcome(
    transport: LeanTransport, timeouts: Timeouts = LONG
) -> tuple[int, object, bytes, type[ApiError] | None]:
    body, status, headers = b"", 0, cast("object", None)
    request = OutboundRequest(method="POST", url="http://a/", body=b"{}", timeouts=timeouts)
    try:
        with anyio.fail_after(30):
            async with transport.open(request) as response:
                status, headers = response.status, tuple(response.headers)
                while piece := await response.read():
                    body += piece
    except ApiError as error:
        return status, headers, body, type(error)
    return status, headers, body, None


names = st.sampled_from([b"server", b"X-Long-Name", b"date", b"set-cookie"])
values = st.text(st.characters(codec="latin-1", min_codepoint=33, max_codepoint=126), max_size=30)
bodies = st.binary(max_size=300)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    status = draw(st.sampled_from([200, 201, 204, 304, 400, 413, 500]))
    headers = [
        (name, value.encode())
        for name, value in draw(st.lists(st.tuples(names, values), max_size=4))
    ]
    framing = draw(st.sampled_from(["length", "chunked", "eof"]))
    body = b"" if status in {204, 304} else draw(bodies)
    sent = body
    if status in {204, 304}:
        framing = "none"
    elif framing == "length":
        headers.append((b"Content-Length", b"%d" % len(body)))
    elif framing == "chunked":
        headers.append((b"transfer-encoding", b"Chunked"))
        size = draw(st.integers(1, 100))
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        sent = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
        sent += b"0\r\n" + draw(st.sampled_from([b"", b"x-trailer: 1\r\n"])) + b"\r\n"
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n"]))
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    head = b"%bHTTP/1.1 %d Said\r\n%b\r\n" % (interim, status, lines)
    return Answer(head + sent, status, tuple(headers), body, framing == "eof")


def cut(wire: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(wire), *(place % (len(wire) + 1) for place in places)})
    return [wire[start:end] for start, end in pairwise(edges)]


cuts = st.lists(st.integers(0, 2000), max_size=12)


@given(answer=answers(), places=cuts)
@settings(deadline=None)
def test_any_cuts_give_the_same_answer(answer: Answer, places: list[int]) -> None:
    async def scenario() -> None:
        scripts = [cut(answer.wire, places)]
        if not answer.needs_eof:
            scripts += [cut(PROBE, places)]
        transport = Wired(Wire(scripts, "eof"))
        expected = (answer.status, answer.headers, answer.body, None)
        assert await outcome(transport) == expected
        if not answer.needs_eof:
            assert (await outcome(transport))[2:] == (b"probe", None)
        await transport.aclose()

    asyncio.run(scenario())


mutations = st.one_of(
    st.tuples(st.just("cut"), st.integers(0, 2000), st.just(b"")),
    st.tuples(st.just("set"), st.integers(0, 2000), st.binary(min_size=1, max_size=3)),
    st.tuples(st.just("insert"), st.integers(0, 2000), st.binary(min_size=1, max_size=8)),
    st.tuples(
        st.just("insert"),
        st.integers(0, 2000),
        st.sampled_from(
            [
                b"\r\n",
                b"\n",
                b"\r\n\r\n",
                b"content-length: 7\r\n",
                b"transfer-encoding: chunked\r\n",
                b"0\r\n\r\n",
                PROBE,
            ]
        ),
    ),
    st.tuples(st.just("delete"), st.integers(0, 2000), st.binary(min_size=1, max_size=8)),
)


def mutated(wire: bytes, how: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, data in how:
        at = place % (len(wire) + 1)
        rest = {"cut": len(wire), "set": at + len(data), "insert": at, "delete": at + len(data)}[
            kind
        ]
        wire = wire[:at] + (data if kind in {"set", "insert"} else b"") + wire[rest:]
    return wire


@given(
    answer=answers(),
    how=st.lists(mutations, min_size=1, max_size=4),
    places=cuts,
    ending=st.sampled_from(["eof", "eof", "reset", "silence"]),
)
@settings(deadline=None, max_examples=200)
def test_any_bytes_give_an_answer_or_an_error_of_ours(
    answer: Answer, how: list[tuple[str, int, bytes]], places: list[int], ending: str
) -> None:
    async def scenario() -> None:
        broken = Wire([cut(mutated(answer.wire, how), places)], ending)
        transport = Wired(broken, Wire([[PROBE]], "silence"))
        limits = SHORT if ending == "silence" else LONG
        status, _headers, body, error = await outcome(transport, limits)
        if error is not None:
            assert error in {UpstreamFailed, UpstreamInterrupted, UpstreamTimeout}
            assert not transport._idle  # an error never leaves its connection behind
        else:
            assert status >= 200
            assert len(body) < 5000
        await asyncio.sleep(0)
        for _ in range(len(places) + 2):  # what may still come on an idle connection
            await asyncio.sleep(0)
        if ending != "silence":
            assert not transport._connections
            assert (await outcome(transport))[2:] == (b"probe", None)
        await transport.aclose()
        assert not transport._connections

    asyncio.run(scenario())


@given(size=st.integers(0, 3_000_000), pause=st.booleans())
@settings(deadline=None, max_examples=20)
def test_what_waits_unread_is_bounded(size: int, pause: bool) -> None:
    async def scenario() -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size
        wire = Wire([[head, *cut(bytes(size), list(range(0, size, 50_000)))], [PROBE]], "silence")
        transport = Wired(wire)
        request = OutboundRequest(method="POST", url="http://a/", body=b"{}")
        got = 0
        async with transport.open(request) as response:
            while True:
                for _ in range(100 if pause else 0):
                    await asyncio.sleep(0)
                (connection,) = transport._connections
                assert sum(map(len, connection.pieces)) < 400_000
                piece = await response.read()
                got += len(piece)
                if not piece:
                    break
        assert got == size
        assert (await outcome(transport))[2:] == (b"probe", None)
        await transport.aclose()

    asyncio.run(scenario())
