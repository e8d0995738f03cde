"""The head of an upstream's answer: how long it may be, and how its body is framed and packed."""

from __future__ import annotations

from collections.abc import Sequence

from shared.http.errors import UpstreamFailed

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256

Headers = Sequence[tuple[bytes, bytes]]


def check_size(headers: Headers, size: int) -> int:
    """Return how long a head is, of which no more than `size` bytes came, some of them its body's.

    Raises:
        UpstreamFailed: it is too long.
    """
    if len(headers) > MAX_HEADERS:
        raise UpstreamFailed("The upstream's answer has too many headers.")
    if size > MAX_HEAD_BYTES:
        size = sum(len(name) + len(value) for name, value in headers)
        if size > MAX_HEAD_BYTES:
            raise UpstreamFailed("The head of the upstream's answer is too large.")
    return size


def framing_of(headers: Headers) -> tuple[bool, bytes | None]:
    """Return whether the body says where it ends, and its encoding, if it has one.

    Raises:
        UpstreamFailed: it is framed in a way that HTTP does not know.
    """
    is_framed = False
    encoding: bytes | None = None
    for name, value in headers:
        size = len(name)  # tells most headers apart at the least cost
        if size == 14 and name.lower() == b"content-length":
            is_framed = True
        elif size == 16 and name.lower() == b"content-encoding":
            encoding = None if value.lower() == b"identity" else value
        elif size == 17 and name.lower() == b"transfer-encoding":
            is_framed = True
            if value.lower() != b"chunked":
                raise UpstreamFailed("The upstream's answer has an unknown transfer encoding.")
    return is_framed, encoding
