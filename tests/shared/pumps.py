"""Both ways from an upstream to a client, without sockets: each piece comes when a test says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

import anyio
import pytest
from starlette.types import Message, Send
from uvicorn.protocols.http.flow_control import FlowControl

import shared.http.relay
from shared.http.cycle import Cycle
from shared.http.errors import ApiError
from shared.http.exchange import Reply, exchange
from shared.http.lean_connection import LeanConnection
from shared.http.pump import Pump, pump_for
from shared.http.relay import relay
from shared.http.streams import ChatRules, StreamRules
from shared.http.transport import OutboundRequest, Timeouts
from tests.shared.exchanges import CHUNK
from tests.shared.test_lean_properties import Wire, Wired

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LIMITS = Timeouts(connect_s=10, first_byte_s=10, idle_s=10)
REQUEST = OutboundRequest(method="POST", url="http://a/", body=b"{}", timeouts=LIMITS)


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


class ClientWire(asyncio.Transport):
    """Keeps what was written; the writes with these numbers fill the buffer, for a turn of the loop."""

    def __init__(self, pauses: Iterable[int] = ()) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.flow = FlowControl(self)
        self._pauses = frozenset(pauses)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.flow.write_paused, "nobody writes to a client that does not read"
        if len(self.writes) in self._pauses:
            self.flow.pause_writing()
            asyncio.get_running_loop().call_soon(self.flow.resume_writing)
        self.writes.append(bytes(data))

    def close(self) -> None:
        """Have nothing to close."""

    def is_closing(self) -> bool:
        return False

    @property
    def raw(self) -> bytes:
        return b"".join(self.writes)


def cycle_on(wire: ClientWire, version: str = "1.1") -> Cycle:
    return Cycle(
        scope={"type": "http", "method": "POST", "http_version": version},  # type: ignore[typeddict-item] # the rest is not read
        transport=wire,
        flow=wire.flow,
        logger=logging.getLogger("test"),
        access_logger=logging.getLogger("test"),
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=True,
        on_response=lambda: None,
    )


def iterating(send: Send) -> Send:
    """Return a channel of which nobody knows that it is our server's."""

    async def passing(message: Message) -> None:
        await send(message)

    return passing


@dataclass
class Outcome:
    """What the client got, and what the request's owner learned."""

    raw: bytes
    failure: type[ApiError] | None
    reported: type[ApiError] | None
    usage: list[bytes]


async def outcome(
    pieces: list[bytes],
    *,
    is_pumped: bool,
    ending: str = "eof",
    rules: StreamRules | None = None,
    pauses: Iterable[int] = (),
) -> Outcome:
    """Have an upstream send these pieces, and relay its stream one way or the other."""
    transport, client = Wired(Wire([pieces], ending)), ClientWire(pauses)
    cycle = cycle_on(client)
    send = cycle.send if is_pumped else iterating(cycle.send)
    failure: ApiError | None = None
    reported: ApiError | None = None
    usage: list[bytes] = []
    with anyio.fail_after(30):
        try:
            async with exchange(transport, REQUEST, rules or ChatRules()) as reply:
                assert (pump_for(reply.chunks, send) is not None) is (is_pumped and reply.is_stream)
                failure = await relay(reply, send)
                reported, usage = reply.reported(), list(reply.usage())
        except ApiError as error:
            failure = error
        await transport.aclose()
    return Outcome(client.raw, type(failure), type(reported), usage)  # type: ignore[arg-type] # or None's


@dataclass
class Scene:
    """A stream on its way through the pump, whose first event is with the client."""

    upstream: LeanConnection
    client: ClientWire
    task: asyncio.Task[ApiError | None]
    reply: Reply
    defects: list[object] = field(default_factory=list)

    def come(self, *events: bytes) -> None:
        """Have events come, all at once."""
        self.upstream.data_received(b"".join(map(chunk, events)))

    def passed(self) -> bytes:
        """Return what the client got behind the first event."""
        return self.client.raw.split(chunk(CHUNK), 1)[1]

    async def ended(self) -> None:
        """Wait for the end of the request, however it ends."""
        with anyio.fail_after(30):
            await asyncio.wait([self.task])


async def begun(
    rules: StreamRules | None = None, *, limits: Timeouts = LIMITS, version: str = "1.1"
) -> Scene:
    """Return a stream that has begun; its task runs `relay`."""
    wire, client = Wire([[HEAD + chunk(CHUNK)]], ""), ClientWire()
    transport = Wired(wire)
    cycle = cycle_on(client, version)
    replies: list[Reply] = []
    request = OutboundRequest(method="POST", url="http://a/", body=b"{}", timeouts=limits)

    async def serve() -> ApiError | None:
        async with exchange(transport, request, rules or ChatRules()) as reply:
            replies.append(reply)
            return await relay(reply, cycle.send)

    task = asyncio.ensure_future(serve())
    await until(lambda: bool(client.writes) or task.done())
    scene = Scene(wire.protocol, client, task, replies[0])
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: scene.defects.append(context)
    )
    return scene


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop turn until it is so."""
    with anyio.fail_after(30):
        while not is_so():
            await asyncio.sleep(0)


def watch_pumps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that tells of each answer relayed from now on whether a pump moves it."""
    found: list[bool] = []

    def telling(chunks: AsyncIterator[bytes], send: Send) -> Pump | None:
        pump = pump_for(chunks, send)
        found.append(pump is not None)
        return pump

    monkeypatch.setattr(shared.http.relay, "pump_for", telling)
    return found
