"""Plain ASGI for the hot routes: read a body within limits, send an answer or an error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from operator import itemgetter

from starlette.types import Message, Receive, Scope, Send

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


def route_path(scope: Scope) -> str:
    """Return the path of a request without what a proxy in front has put before it (`--root-path`)."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("/", ""):
        return path[len(root) :]
    return path


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
    take_whole = scope.get(WHOLE_BODY)
    whole: bytes | None = None if take_whole is None else take_whole()
    if whole is not None:
        if len(whole) > limit:
            raise _too_large(limit)
        return whole
    reader = BodyReader(scope, receive, limit=limit, idle_s=idle_s, grace_s=grace_s)
    pieces: list[bytes] = []
    while True:
        message = await reader.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        pieces.append(message.get("body", b""))
        if reader.is_over:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class BodyReader:
    """Takes a request's body piece by piece, within limits; `is_over` once it is whole."""

    __slots__ = ("_begun", "_grace_s", "_idle_s", "_limit", "_receive", "_size", "is_over")

    def __init__(
        self, scope: Scope, receive: Receive, *, limit: int, idle_s: float, grace_s: float
    ) -> None:
        """Read nothing yet; the arguments are those of `read_body`.

        Raises:
            BodyTooLarge: it is declared longer than `limit`.
        """
        self._receive = receive
        self._limit = limit
        self._idle_s = idle_s
        self._grace_s = grace_s
        self._size = 0
        self._begun = 0.0
        self.is_over = False
        if int(header(scope, b"content-length") or b"0") > limit:
            raise _too_large(self._limit)

    async def receive(self) -> Message:
        """Return the next piece, or that the client left (ASGI).

        Raises:
            BodyTooLarge: it is longer than the limit; the rest is not read.
            BodyTimeout: the client paused for too long, or drips.
        """
        with TimeLimit(self._idle_s) as pause:
            message = await self._receive()
        if pause.is_cut:
            raise _timeout()
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise _too_large(self._limit)
        if message.get("more_body", False):
            self._check_pace()
        else:
            self.is_over = True
        return message

    def _check_pace(self) -> None:
        now = asyncio.get_running_loop().time()
        self._begun = self._begun or now
        if now - self._begun > max(self._grace_s, self._size / _LEAST_BYTES_S):
            raise _timeout()


def _too_large(limit: int) -> BodyTooLarge:
    shown = f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit} bytes"
    return BodyTooLarge(
        f"The request's body is larger than {shown}, the limit here. Send less in one request."
    )


def _timeout() -> BodyTimeout:
    return BodyTimeout("The request's body did not arrive in time.", headers=_CLOSE)


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
    headers = scope["headers"]
    are_all_known = len(scope[BY_NAME]) == len(headers)  # no name came twice
    if host is None or (not are_all_known and list(map(_NAME, headers)).count(b"host") > 1):
        raise BadRequest("Send exactly one Host header.")
    return host.decode("latin-1")
