"""Which headers cross the service, in which direction. Both directions are allow-lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter

RawHeaders = Sequence[tuple[bytes, bytes]]
_NAME = itemgetter(0)

_TO_CLIENT = frozenset(
    {
        b"content-type",
        b"content-language",
        b"openai-model",
        b"openai-processing-ms",
        b"openai-version",
        b"retry-after",
        b"retry-after-ms",
        b"x-should-retry",
    }
)
_TO_UPSTREAM = frozenset(
    {b"openai-beta", b"traceparent", b"tracestate", b"anthropic-version", b"anthropic-beta"}
)


def find_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Return the first value of a header; `name` is lower case."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return None


def pass_on(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return what of an upstream's headers the client gets."""
    found = []
    for key, value in headers:
        name = key.lower()
        if name in _TO_CLIENT or name.startswith((b"x-ratelimit-", b"anthropic-ratelimit-")):
            found.append((name, value))
    return found


def pass_upstream(headers: RawHeaders) -> tuple[tuple[str, str], ...]:
    """Return what of a client's headers an upstream gets; never its `authorization`."""
    if _TO_UPSTREAM.isdisjoint(map(_NAME, headers)):
        return ()
    return tuple(
        (key.decode("latin-1"), value.decode("latin-1"))
        for key, value in headers
        if key in _TO_UPSTREAM
    )


def retry_after_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Return `retry-after` in seconds; None if it is absent, negative or a date."""
    value = find_header(headers, b"retry-after") or b""
    if not value.replace(b".", b"", 1).isdigit():
        return None
    return min(float(value), 86400.0)
