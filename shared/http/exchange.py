"""One call to an upstream: entered when the first part of its answer is in hand.

Until then nothing is committed, so whatever goes wrong is an error that may be followed by another
attempt. Answers that are no event streams are read whole (up to a bound), because half a JSON
document is of no use to anybody; event streams are entered at their first event with data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from shared.http.errors import ApiError, Origin, UpstreamFailed, UpstreamInterrupted
from shared.http.headers import find_header, pass_on
from shared.http.streams import ChatRules, EventStream, StreamRules
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


@dataclass(slots=True)
class Reply:
    """An upstream's answer whose first body chunk is already in hand.

    `chunks` raises `ApiError` if the upstream breaks off. `headers` are filtered: safe to pass on.
    `is_whole`: `chunks` is the whole answer, at once, and can't fail any more. `usage` returns the
    usage object as JSON, once it went by. `error_event` renders an error for the open stream.
    `error_origin` is whom an agent names as the cause of its error.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    chunks: AsyncIterator[bytes]
    is_stream: bool
    is_whole: bool = False
    usage: Callable[[], bytes | None] = lambda: None
    error_event: Callable[[ApiError], bytes] = ApiError.event
    error_origin: Origin | None = None


@asynccontextmanager
async def exchange(
    transport: Transport, request: OutboundRequest, rules: StreamRules | None = None
) -> AsyncIterator[Reply]:
    """Send `request` and enter with the reply.

    Args:
        transport: what sends it.
        request: what is sent.
        rules: what an event stream may hold; by default what chat may.

    Raises:
        ApiError: nothing was committed; one of the `Upstream…` errors.
    """
    async with transport.open(request) as response:
        if 300 <= response.status < 400:
            raise UpstreamFailed("The upstream answered with a redirect, which is not followed.")
        content_type = (find_header(response.headers, b"content-type") or b"").lower()
        if content_type.startswith(b"text/event-stream") and response.status < 300:
            yield await _streamed(response, rules or ChatRules())
            await response.finish()
        else:
            yield await _held(response, content_type)


async def _streamed(response: InboundResponse, rules: StreamRules) -> Reply:
    stream = EventStream(response, rules)
    parts = stream.parts()
    try:
        first = await anext(parts)
    except StopAsyncIteration:
        raise UpstreamInterrupted("The upstream ended its stream before it was done.") from None
    return Reply(
        response.status,
        pass_on(response.headers),
        _chained([first], parts),
        is_stream=True,
        usage=lambda: stream.usage,
        error_event=rules.error_event,
    )


async def _held(response: InboundResponse, content_type: bytes) -> Reply:
    first, is_whole = await _hold(response)
    usage = _check_whole(first[0], content_type) if is_whole and response.status == 200 else None
    return Reply(
        response.status,
        pass_on(response.headers),
        _chained(first, _pieces(response)),
        is_stream=False,
        is_whole=is_whole,
        usage=lambda: usage,
        error_origin=_ORIGINS.get(find_header(response.headers, b"x-iir-error-origin") or b""),
    )


async def _chained(first: Sequence[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in first:
        yield chunk
    async for chunk in rest:
        yield chunk


async def _pieces(response: InboundResponse) -> AsyncIterator[bytes]:
    while chunk := await response.read():
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
    return [b"".join(held)], True


def _check_whole(body: bytes, content_type: bytes) -> bytes | None:
    """Return the usage object of an answer, if there is one.

    Raises:
        ApiError: it is a 200 that is no answer: SDKs would take it for an empty one.
    """
    if not body.strip() or content_type.startswith(b"text/html"):
        raise UpstreamFailed("The upstream answered with status 200, but without an answer.")
    if len(body) > _PARSED_BYTES or not content_type.startswith(b"application/json"):
        return None
    try:
        body.decode()  # msgspec does not look into the raw values
        top = _decode_whole(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamFailed("The upstream's answer is not a JSON object.") from None
    if is_error(top.error, top.object):
        raise upstream_error(status_of(body), body)
    return None if top.usage == _NULL else bytes(top.usage)
