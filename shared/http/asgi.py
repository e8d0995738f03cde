"""Plain ASGI for the hot routes: read a body within limits, send an answer or an error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from operator import itemgetter

from starlette.types import Receive, Scope, Send

from shared.http.cutoff import TimeLimit
from shared.http.errors import ApiError, BadRequest, BodyTimeout, BodyTooLarge, UnsupportedMediaType

_CLOSE = (("connection", "close"),)
_NAME = itemgetter(0)
BY_NAME = "iir.headers"
"""The key of a scope under which its headers' first values are kept by name, once one was asked for."""
WHOLE_BODY = "iir.body"
"""The key of a scope under which our server puts what returns the body if it came with the head."""
# A body that comes slower than this in the long run holds a connection for nothing.
_LEAST_BYTES_S = 256


class ClientGone(Exception):
    """The client closed its connection."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first value of a request header; `name` is lower case."""
    by_name: dict[bytes, bytes] | None = scope.get(BY_NAME)
    if by_name is None:
        by_name = scope[BY_NAME] = dict(reversed(scope["headers"]))
    return by_name.get(name)


async def read_body(
    scope: Scope, receive: Receive, *, limit: int, idle_s: float = 30.0, grace_s: float = 60.0
) -> bytes:
    """Return the request's body.

    Args:
        scope: the request's scope.
        receive: its channel.
        limit: the most bytes that are read.
        idle_s: how long the client may pause between two pieces, in seconds.
        grace_s: how long it may drip, in seconds.

    Raises:
        BodyTooLarge: it is declared or sent longer than `limit`; the rest is not read.
        UnsupportedMediaType: it is compressed.
        BodyTimeout: the client paused for too long, or drips.
        ClientGone: the client left.
    """
    if (header(scope, b"content-encoding") or b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Compressed request bodies are not taken. Send plain JSON.")
    declared = header(scope, b"content-length")
    if declared is not None and int(declared) > limit:
        raise _too_large(limit)
    take_whole = scope.get(WHOLE_BODY)
    whole: bytes | None = None if take_whole is None else take_whole()
    if whole is None:
        return await _read_pieces(receive, limit, idle_s, grace_s)
    if len(whole) > limit:
        raise _too_large(limit)
    return whole


async def _read_pieces(receive: Receive, limit: int, idle_s: float, grace_s: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    begun = 0.0
    while True:
        with TimeLimit(idle_s) as pause:
            message = await receive()
        if pause.is_cut:
            raise body_timeout()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body: bytes = message.get("body", b"")
        size += len(body)
        if size > limit:
            raise _too_large(limit)
        pieces.append(body)
        if not message.get("more_body", False):
            return body if len(pieces) == 1 else b"".join(pieces)
        now = asyncio.get_running_loop().time()
        begun = begun or now
        if now - begun > max(grace_s, size / _LEAST_BYTES_S):
            raise body_timeout()


def body_timeout() -> BodyTimeout:
    """Return the error for a client that stopped in the middle of its body."""
    return BodyTimeout("The request's body did not arrive in time.", headers=_CLOSE)


def _too_large(limit: int) -> ApiError:
    return BodyTooLarge(
        f"The request's body is larger than {limit // (1024 * 1024)} MiB, the limit here. Send less "
        "in one request."
    )


def require_json(scope: Scope) -> None:
    """Refuse what a web page could send without asking (a form, plain text).

    Raises:
        UnsupportedMediaType: the content type is not `application/json`.
    """
    content_type = (header(scope, b"content-type") or b"").split(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise UnsupportedMediaType("Send the header `content-type: application/json`.")


async def send_body(
    send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> None:
    """Send a whole answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_error(
    send: Send, error: ApiError, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Send an error as a whole answer."""
    await send_body(send, error.status, [*headers, *error.response_headers()], error.body())


def check_host_header(scope: Scope) -> str:
    """Return the Host header.

    Raises:
        BadRequest: there is none, or more than one.
    """
    host = header(scope, b"host")
    if host is None or list(map(_NAME, scope["headers"])).count(b"host") > 1:
        raise BadRequest("Send exactly one Host header.")
    return host.decode("latin-1")
