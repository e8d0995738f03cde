"""Which headers cross the service, in which direction. Both directions are allow-lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from email.utils import parsedate_to_datetime
from operator import itemgetter

from shared.kit.clock import Clock, wall_time

RawHeaders = Sequence[tuple[bytes, bytes]]
_NAME = itemgetter(0)
_DAY_S = 86400.0

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
    """Return what of an upstream's headers the client gets: of each the first, by which we go too."""
    found: dict[bytes, bytes] = {}
    for key, value in headers:
        name = key.lower()
        if name in _TO_CLIENT or name.startswith((b"x-ratelimit-", b"anthropic-ratelimit-")):
            found.setdefault(name, value)
    return list(found.items())


def pass_upstream(headers: RawHeaders) -> tuple[tuple[str, str], ...]:
    """Return what of a client's headers an upstream gets; never its `authorization`."""
    if _TO_UPSTREAM.isdisjoint(map(_NAME, headers)):
        return ()
    return tuple(
        (key.decode("latin-1"), value.decode("latin-1"))
        for key, value in headers
        if key in _TO_UPSTREAM
    )


def wait_preference(prefer: bytes | None) -> float | None:
    """Return the seconds of `prefer: wait=SECONDS`; None where it says nothing (RFC 7240, 4.3)."""
    found = None if prefer is None else _WAIT.search(prefer)
    return None if found is None else float(found[1])


def retry_after_s(headers: RawHeaders, now: Clock = wall_time) -> float | None:
    """Return for how many seconds an answer asks to be left alone, a day at most; None if it does not.

    `retry-after-ms` is more exact than `retry-after`, which holds seconds or a date (RFC 9110, 10.2.3).

    Args:
        headers: the answer's.
        now: the time of day, in seconds since 1970, to which a date is compared.
    """
    value_ms = _number(find_header(headers, b"retry-after-ms") or b"")
    if value_ms is not None:
        return min(value_ms / 1000, _DAY_S)
    value = find_header(headers, b"retry-after") or b""
    seconds = _number(value)
    if seconds is None:
        try:
            seconds = max(parsedate_to_datetime(value.decode("latin-1")).timestamp() - now(), 0.0)
        except (ValueError, TypeError, OverflowError):  # Python 3.10 raises TypeError for no date
            return None
    return min(seconds, _DAY_S)


def _number(value: bytes) -> float | None:
    return float(value) if value.replace(b".", b"", 1).isdigit() else None
