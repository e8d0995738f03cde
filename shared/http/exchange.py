"""One call to an upstream: entered when the first part of its answer is in hand.

Until then nothing is committed, so whatever goes wrong is an error that may be followed by another
attempt. Answers that are no event streams are read whole (up to a bound), because half a JSON
document is of no use to anybody; event streams are entered at their first event with data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import msgspec

from shared.http.errors import ApiError, Origin, UpstreamFailed
from shared.http.event_stream import EventStream
from shared.http.headers import find_header, pass_on
from shared.http.streams import ChatRules, StreamRules
from shared.http.transport import InboundResponse, OutboundRequest, Transport
from shared.http.upstream_errors import is_error, status_of, upstream_error

# An answer up to this size is held until it is complete; a longer one is passed on as it comes.
HELD_BYTES = 8 * 1024 * 1024

# A longer one is not parsed for an error that it may report in spite of its status.
_PARSED_BYTES = 256 * 1024
_NULL = msgspec.Raw(b"null")
_ORIGINS: Mapping[bytes, Origin] = {b"agent": "agent", b"client": "client", b"upstream": "upstream"}


class _Whole(msgspec.Struct):
    error: msgspec.Raw = _NULL
    object: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL


_decode_whole = msgspec.json.Decoder(_Whole).decode


def _no_usage() -> Sequence[bytes]:
    return ()


def _no_report() -> ApiError | None:
    return None


class Reply(msgspec.Struct):
    """An upstream's answer whose first body chunk is already in hand.

    `body` is the whole answer if it was held; else `chunks` yields it, and raises `ApiError` if the
    upstream breaks off. `headers` are filtered: safe to pass on. `usage` returns the usage objects
    that went by so far, as JSON, of which later ones say more. `error_event` renders an error for
    the open stream. `error_origin` is whom an agent names as the cause of its error. `failure` is
    what broke the answer off, told by whoever sent it on; `reported` returns the error with which the
    answer itself says that it ended, in its API's own event. `told` are all headers of an answer that is
    no success, for who knows what they mean: never to be passed on.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    chunks: AsyncIterator[bytes]
    is_stream: bool
    body: bytes | None = None
    usage: Callable[[], Sequence[bytes]] = _no_usage
    error_event: Callable[[ApiError], bytes] = ApiError.event
    error_origin: Origin | None = None
    failure: ApiError | None = None
    reported: Callable[[], ApiError | None] = _no_report
    told: Sequence[tuple[bytes, bytes]] = ()

    def ended_by(self) -> ApiError | None:
        """Return what broke the answer off after it had begun, or the error that it ended with."""
        return self.failure or self.reported()

    async def whole(self) -> bytes:
        """Return the answer, all of it.

        Raises:
            UpstreamFailed: it is longer than what is held, and maybe without end.
        """
        if self.body is None and not self.is_stream:
            raise UpstreamFailed("The upstream's answer is too long to be read whole.")
        return (
            self.body if self.body is not None else b"".join([part async for part in self.chunks])
        )


def exchange(
    transport: Transport, request: OutboundRequest, rules: StreamRules | None = None
) -> AbstractAsyncContextManager[Reply]:
    """Send `request`; the context is entered with the reply.

    Args:
        transport: what sends it.
        request: what is sent.
        rules: what an event stream may hold; by default what chat may.

    Entering raises `ApiError`, one of the `Upstream…` errors: nothing was committed.
    """
    return exchange_opened(transport.open(request), rules)


def exchange_opened(
    opening: AbstractAsyncContextManager[InboundResponse], rules: StreamRules | None = None
) -> AbstractAsyncContextManager[Reply]:
    """Do as `exchange`, with a request that is `opening` already."""
    return _Exchange(opening, rules or ChatRules())


class _Exchange(AbstractAsyncContextManager[Reply]):
    __slots__ = ("_opening", "_response", "_rules")

    def __init__(
        self, opening: AbstractAsyncContextManager[InboundResponse], rules: StreamRules
    ) -> None:
        self._opening = opening
        self._rules = rules
        self._response: InboundResponse | None = None

    async def __aenter__(self) -> Reply:
        response = await self._opening.__aenter__()
        try:
            reply = await self._entered(response)
        except BaseException as error:
            await self._opening.__aexit__(type(error), error, error.__traceback__)
            raise
        self._response = response if reply.is_stream else None
        return reply

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None and self._response is not None:
                await self._response.finish()
        finally:
            await self._opening.__aexit__(kind, error, trace)

    async def _entered(self, response: InboundResponse) -> Reply:
        if 300 <= response.status < 400:
            raise UpstreamFailed("The upstream answered with a redirect, which is not followed.")
        if response.status >= 600:
            raise UpstreamFailed("The upstream answered with a status that does not exist.")
        if response.status < 300 and is_event_stream(response.headers):
            return await _streamed(response, self._rules)
        return await _held(response)


def is_event_stream(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Tell whether an answer says that it is one."""
    content_type = find_header(headers, b"content-type") or b""
    return content_type.lower().startswith(b"text/event-stream")


async def _streamed(response: InboundResponse, rules: StreamRules) -> Reply:
    stream = EventStream(response, rules)
    await stream.begin()
    return Reply(
        response.status,
        pass_on(response.headers),
        stream,
        is_stream=True,
        usage=lambda: stream.usage,
        error_event=rules.error_event,
        reported=lambda: stream.reported,
    )


async def _held(response: InboundResponse) -> Reply:
    first, is_whole = await _hold(response)
    is_answer = 200 <= response.status < 300
    if is_answer and is_whole:
        return answered(response.status, pass_on(response.headers), b"".join(first))
    return Reply(
        response.status,
        pass_on(response.headers),
        _chained(first, response),
        is_stream=False,
        body=b"".join(first) if is_whole else None,
        error_origin=_ORIGINS.get(find_header(response.headers, b"x-iir-error-origin") or b""),
        told=() if is_answer else response.headers,
    )


def answered(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> Reply:
    """Return the reply that a success makes which is here whole, with `headers` that may pass; no event stream.

    Raises:
        ApiError: it is no answer: SDKs would take it for an empty one.
    """
    usage = _check_whole(body)
    return Reply(
        status,
        headers,
        _Once(body),
        is_stream=False,
        body=body,
        usage=_no_usage if not usage else lambda: usage,
    )


class _Once(AsyncIterator[bytes]):
    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __anext__(self) -> bytes:
        body, self._body = self._body, None
        if body is None:
            raise StopAsyncIteration
        return body


async def _chained(first: Sequence[bytes], rest: InboundResponse) -> AsyncIterator[bytes]:
    for chunk in first:
        yield chunk
    while chunk := await rest.read():
        yield chunk


async def _hold(response: InboundResponse) -> tuple[list[bytes], bool]:
    """Return the body, and whether that is all of it."""
    held: list[bytes] = []
    size = 0
    while chunk := await response.read():
        held.append(chunk)
        size += len(chunk)
        if size > HELD_BYTES:
            return held, False
    return held, True


def _check_whole(body: bytes) -> Sequence[bytes]:
    """Return the usage object of an answer, if there is one.

    Raises:
        ApiError: it is a success that is no answer: SDKs would take it for an empty one.
    """
    if not body or body.isspace():
        raise UpstreamFailed("The upstream answered with a success, but without an answer.")
    if len(body) > _PARSED_BYTES:
        return ()
    try:
        if not body.isascii():
            body.decode()  # msgspec does not look into the raw values
        top = _decode_whole(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamFailed("The upstream's answer is not a JSON object.") from None
    if is_error(top.error, top.object):
        raise upstream_error(status_of(body), body)
    return () if top.usage == _NULL else (bytes(top.usage),)
