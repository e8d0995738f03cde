"""What the tests of exchanges share: a transport that answers as told, and events of each API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from shared.http.errors import ApiError
from shared.http.exchange import exchange
from shared.http.transport import InboundResponse, OutboundRequest, Transport

SSE = ((b"Content-Type", b"text/event-stream; charset=utf-8"),)
JSON = ((b"content-type", b"application/json"),)
REQUEST = OutboundRequest(method="POST", url="http://127.0.0.1:1/")
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


class FakeTransport(Transport):
    """Answers with given chunks; counts what was read and closed."""

    def __init__(
        self,
        *chunks: bytes,
        status: int = 200,
        headers: Sequence[tuple[bytes, bytes]] = SSE,
        error: ApiError | None = None,
    ) -> None:
        self._status, self._headers = status, headers
        self._chunks, self._error = iter(chunks), error
        self.reads = 0
        self.finished = self.closed = 0

    @property
    def status(self) -> int:
        return self._status

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        return self._headers

    @asynccontextmanager
    async def open(self, request: OutboundRequest) -> AsyncIterator[InboundResponse]:
        try:
            yield self
        finally:
            self.closed += 1

    async def read(self) -> bytes:
        for chunk in self._chunks:
            self.reads += 1
            return chunk
        if self._error is not None:
            raise self._error
        return b""

    async def finish(self) -> None:
        self.finished += 1

    async def aclose(self) -> None:
        """Have nothing to close."""


async def parts_of(transport: Transport) -> tuple[list[bytes], ApiError | None]:
    """Return what left, and the error that came after it."""
    found: list[bytes] = []
    async with exchange(transport, REQUEST) as reply:
        try:
            async for part in reply.chunks:
                found.append(part)
        except ApiError as error:
            return found, error
    return found, None


async def failure_of(transport: FakeTransport) -> ApiError:
    """Return the error that came before anything was committed."""
    with pytest.raises(ApiError) as failed:
        async with exchange(transport, REQUEST):
            raise AssertionError("committed")
    assert transport.closed == 1
    return failed.value


RESPONSE_EVENTS = (
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n',
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n',
    b'event: response.completed\ndata: {"type":"response.completed","response":{"error":null}}\n\n',
)
MESSAGE_EVENTS = (
    b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n',
    b'event: ping\ndata: {"type": "ping"}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)


ERRORS = {
    "openai": b'data: {"error":{"message":"broke","type":"server_error","code":"x"}}\n\n',
    "text": b'data: {"error": "broke"}\n\n',
    "old vLLM": b'data: {"object":"error","message":"broke","type":"InternalServerError"}\n\n',
    "named": b'event: error\ndata: {"error":{"message":"broke"}}\n\n',
    "message": b'event: error\ndata: {"message":"broke"}\n\n',
    "after an id": b'id: 1\r\nevent:error\r\ndata: {"message":"broke"}\r\n\r\n',
}
