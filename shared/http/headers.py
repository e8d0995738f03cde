"""Which headers cross the service, in which direction. Both directions are allow-lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

RawHeaders = Sequence[tuple[bytes, bytes]]

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
_WAIT = re.compile(rb'(?:^|,)\s*wait\s*=\s*"?([0-9]{1,9})(?=["\s,;]|$)', re.IGNORECASE)


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


def pass_upstream(headers: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    """Return what of a client's headers an upstream gets; never its `authorization`."""
    return tuple(
        (key.decode("latin-1"), value.decode("latin-1"))
        for key, value in headers
        if key in _TO_UPSTREAM
    )


def wait_preference(prefer: bytes | None) -> float | None:
    """Return the seconds of `prefer: wait=SECONDS`; None where it says nothing (RFC 7240, 4.3)."""
    found = None if prefer is None else _WAIT.search(prefer)
    return None if found is None else float(found[1])


def retry_after_s(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    """Return `retry-after` in seconds; None if it is absent, negative or a date."""
    value = find_header(headers, b"retry-after") or b""
    if not value.replace(b".", b"", 1).isdigit():
        return None
    return min(float(value), 86400.0)
