"""One call to an upstream: entered when the first part of its answer is in hand.

Until then nothing is committed, so whatever goes wrong is an error that may be followed by another
attempt. Answers that are no event streams are read whole (up to a bound), because half a JSON
document is of no use to anybody; event streams are entered at their first event with data.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec

from shared.http.errors import UpstreamAnswer, UpstreamFailed, UpstreamInterrupted
from shared.http.headers import find_header, pass_on
from shared.http.sse import SseFramer, event_data
from shared.http.transport import InboundResponse, OutboundRequest, Transport

# An answer up to this size is held until it is complete; a longer one is passed on as it comes.
HELD_BYTES = 8 * 1024 * 1024

# A longer one is not parsed for an error that it may report in spite of its status.
_PARSED_BYTES = 256 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ERROR_NAME = re.compile(rb"(?:^|[\r\n])event: ?error[\r\n]")

_decode_top = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


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
        content_type = (find_header(response.headers, b"content-type") or b"").lower()
        is_stream = content_type.startswith(b"text/event-stream") and response.status < 300
        parts = _events(response) if is_stream else response.chunks()
        if is_stream:
            first, is_whole = [await _first_part(parts)], False
        else:
            first, is_whole = await _hold(parts)
            if is_whole and response.status == 200:
                _check_whole(first[0], content_type)
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
    held = bytearray()
    async for part in events:
        held += part
        data = _first_data(part)
        if data is not None:
            _check_first(data)
            return bytes(held)
        if len(held) > HELD_BYTES:
            raise UpstreamFailed("The upstream's stream does not come to its first event.")
    raise UpstreamInterrupted("The upstream ended its stream before the first event.")


def _first_data(part: bytes) -> bytes | None:
    for event in SseFramer().feed(part):
        data = event_data(event)
        if data is not None:
            return data
    return None


def _check_first(data: bytes) -> None:
    if data != b"[DONE]" and _decoded(data) is None:
        raise UpstreamFailed("The upstream's stream does not start with a JSON event.")


def _check_whole(body: bytes, content_type: bytes) -> None:
    """Refuse a 200 that is no answer: SDKs would take it for an empty one."""
    if not body.strip() or content_type.startswith(b"text/html"):
        raise UpstreamFailed("The upstream answered with status 200, but without an answer.")
    if len(body) > _PARSED_BYTES or not content_type.startswith(b"application/json"):
        return
    top = _decoded(body)
    if top is None:
        raise UpstreamFailed("The upstream's answer is not a JSON object.")
    if _is_error(top):
        raise upstream_error(_status_of(body), body)


async def _events(response: InboundResponse) -> AsyncIterator[bytes]:
    """Yield whole events, several at once where they came at once, up to and with `[DONE]`.

    An error event is raised instead, so that the client gets it once and in the one shape that
    SDKs understand.
    """
    framer = SseFramer()
    is_start = True
    async for chunk in response.chunks():
        events = framer.feed(chunk)
        if is_start and events:
            events[0] = events[0].removeprefix(_BYTE_ORDER_MARK)  # SDKs would lose the first event
            is_start = False
        passed, failure, is_done = _judged(events)
        if passed:
            yield passed
        if failure is not None:
            raise failure
        if is_done:
            return
    if event_data(framer.pending) == b"[DONE]":
        yield b"data: [DONE]\n\n"
        return
    raise UpstreamInterrupted("The upstream ended its stream before it was done.")


def _judged(events: Sequence[bytes]) -> tuple[bytes, UpstreamAnswer | None, bool]:
    """Return what may pass, the error that follows it, and whether the stream is done with it."""
    for position, event in enumerate(events):
        if b"[DONE]" in event and event_data(event) == b"[DONE]":
            return b"".join(events[: position + 1]), None, True
        failure = _failure(event) if b"error" in event else None
        if failure is not None:
            return b"".join(events[:position]), failure, False
    return events[0] if len(events) == 1 else b"".join(events), None, False


def _failure(event: bytes) -> UpstreamAnswer | None:
    """Return the error that an event reports, in whatever shape engines have for it."""
    data = event_data(event)
    top = _decoded(data) if data else None
    if data is None or top is None:
        return None
    if _is_error(top) or _ERROR_NAME.search(event):
        return upstream_error(_status_of(data), data)
    return None


def _decoded(data: bytes) -> dict[str, msgspec.Raw] | None:
    try:
        data.decode()  # msgspec does not look into the raw values
        return _decode_top(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_error(top: Mapping[str, msgspec.Raw]) -> bool:
    if bytes(top.get("object", b"")) == b'"error"':  # older vLLM
        return True
    return bytes(top.get("error", b"null")) not in {b"null", b"false", b'""', b"{}"}


class _ErrorObject(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class _Envelope(msgspec.Struct):
    error: _ErrorObject


class _AnyShape(msgspec.Struct):
    error: _ErrorObject | str | None = None
    message: str = ""
    type: str | None = None
    code: str | int | None = None


_decode_envelope = msgspec.json.Decoder(_Envelope, strict=False).decode
_decode_any_shape = msgspec.json.Decoder(_AnyShape, strict=False).decode
_RETRYABLE_BELOW_500 = frozenset({408, 409, 425, 429})


def is_retryable(status: int) -> bool:
    """Tell whether another attempt may do better than this answer."""
    return status >= 500 or status in _RETRYABLE_BELOW_500


def upstream_error(
    status: int, body: bytes, *, retry_after_s: float | None = None
) -> UpstreamAnswer:
    """Translate an upstream's error answer, of whatever shape, into an error of ours.

    A JSON error keeps its message, type and code (vLLM's numeric codes become text); anything else
    is replaced by a sentence with the status, since it may name internal hosts.
    """
    error = _error_object(body)
    return UpstreamAnswer(
        error.message or f"The upstream answered with status {status} and no readable reason.",
        status=status,
        type_=error.type or ("invalid_request_error" if status < 500 else "server_error"),
        code=None if error.code is None else str(error.code),
        is_retryable=is_retryable(status),
        retry_after_s=retry_after_s,
    )


def _error_object(body: bytes) -> _ErrorObject:
    try:
        found = _decode_any_shape(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _ErrorObject()
    if isinstance(found.error, _ErrorObject):
        return found.error
    return _ErrorObject(found.error or found.message, found.type, found.code)


def _status_of(body: bytes) -> int:
    """Return the status for an error that came without one: what its code says, else 502."""
    code = str(_error_object(body).code)
    is_status = len(code) == 3 and code.isascii() and code.isdigit() and 400 <= int(code) < 600
    # what the upstream thinks of the router's credential is not the client's business
    return int(code) if is_status and code not in {"401", "403"} else 502


def is_envelope(body: bytes) -> bool:
    """Tell whether an error's body can go to the client as it is: `{"error": {"message": …}}`."""
    try:
        return bool(_decode_envelope(body).error.message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
