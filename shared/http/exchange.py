"""One call to an upstream: entered when the first part of its answer is in hand.

Until then nothing is committed, so whatever goes wrong is an error that may be followed by another
attempt. Answers that are no event streams are read whole (up to a bound), because half a JSON
document is of no use to anybody; event streams are entered at their first event with data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from shared.http.errors import UpstreamAnswer, UpstreamFailed, UpstreamInterrupted
from shared.http.headers import find_header, pass_on
from shared.http.sse import SseFramer, event_data
from shared.http.transport import InboundResponse, OutboundRequest, Transport

# An answer up to this size is held until it is complete; a longer one is passed on as it comes.
HELD_BYTES = 8 * 1024 * 1024

_decode_error = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(slots=True)
class Reply:
    """An upstream's answer whose first body chunk is already in hand.

    `chunks` raises `ApiError` if the upstream breaks off. `headers` are filtered: safe to pass on.
    `is_whole`: `chunks` is the whole answer, at once, and can't fail any more.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    chunks: AsyncIterator[bytes]
    is_stream: bool
    is_whole: bool = False


@asynccontextmanager
async def exchange(transport: Transport, request: OutboundRequest) -> AsyncIterator[Reply]:
    """Send `request` and enter with the reply.

    Raises:
        ApiError: nothing was committed; one of the `Upstream…` errors.
    """
    async with transport.open(request) as response:
        if 300 <= response.status < 400:
            raise UpstreamFailed("The upstream answered with a redirect, which is not followed.")
        content_type = find_header(response.headers, b"content-type") or b""
        is_stream = content_type.startswith(b"text/event-stream") and response.status < 300
        parts = _events(response) if is_stream else response.chunks()
        if is_stream:
            first, is_whole = [await _first_part(parts)], False
        else:
            first, is_whole = await _hold(parts)
        yield Reply(
            response.status,
            pass_on(response.headers),
            _chained(first, parts),
            is_stream,
            is_whole,
        )
        if is_stream:
            await response.finish()


async def _chained(first: Sequence[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in first:
        yield chunk
    async for chunk in rest:
        yield chunk


async def _hold(chunks: AsyncIterator[bytes]) -> tuple[list[bytes], bool]:
    """Return the body, and whether that is all of it."""
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size > HELD_BYTES:
            return held, False
    return [b"".join(held)], True


async def _first_part(events: AsyncIterator[bytes]) -> bytes:
    """Return everything up to the first event with data, so that an error there can fail over."""
    seen = bytearray()
    async for part in events:
        seen += part
        data = _first_data(bytes(seen))
        if data is not None:
            _raise_if_error(data)
            return bytes(seen)
    raise UpstreamInterrupted("The upstream ended its stream before the first event.")


def _first_data(part: bytes) -> bytes | None:
    for event in SseFramer().feed(part):
        data = event_data(event)
        if data is not None:
            return data
    return None


def _raise_if_error(data: bytes) -> None:
    if data == b"[DONE]":
        return
    try:
        top = _decode_error(data)
    except (msgspec.DecodeError, RecursionError):
        raise UpstreamFailed("The upstream's stream does not start with a JSON event.") from None
    if bytes(top.get("error", b"null")) not in {b"null", b"false", b'""', b"{}"}:
        raise upstream_error(500, data)


async def _events(response: InboundResponse) -> AsyncIterator[bytes]:
    """Yield whole events, several at once where they came at once, up to and with `[DONE]`."""
    framer = SseFramer()
    async for chunk in response.chunks():
        events = framer.feed(chunk)
        for position, event in enumerate(events):
            if b"[DONE]" in event and event_data(event) == b"[DONE]":
                yield b"".join(events[: position + 1])
                return
        if events:
            yield events[0] if len(events) == 1 else b"".join(events)
    if event_data(framer.pending) == b"[DONE]":
        yield b"data: [DONE]\n\n"
        return
    raise UpstreamInterrupted("The upstream ended its stream before it was done.")


class _ErrorObject(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class _Envelope(msgspec.Struct):
    error: _ErrorObject


_decode_envelope = msgspec.json.Decoder(_Envelope, strict=False).decode
RETRYABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


def upstream_error(
    status: int, body: bytes, *, retry_after_s: float | None = None
) -> UpstreamAnswer:
    """Translate an upstream's error answer, of whatever shape, into an error of ours.

    An OpenAI-shaped body keeps its message, type and code (vLLM's numeric codes become text);
    anything else is replaced by a sentence with the status, since it may name internal hosts.
    """
    try:
        error = _decode_envelope(body).error
    except (msgspec.DecodeError, RecursionError):
        error = _ErrorObject()
    return UpstreamAnswer(
        error.message or f"The upstream answered with status {status} and no readable reason.",
        status=status,
        type_=error.type or ("invalid_request_error" if status < 500 else "server_error"),
        code=None if error.code is None else str(error.code),
        is_retryable=status in RETRYABLE_STATUS,
        retry_after_s=retry_after_s,
    )


def is_envelope(body: bytes) -> bool:
    """Tell whether an error's body can go to the client as it is: `{"error": {"message": …}}`."""
    try:
        return bool(_decode_envelope(body).error.message)
    except (msgspec.DecodeError, RecursionError):
        return False
