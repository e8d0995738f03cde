"""One call to an upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(slots=True)
class Reply:
    """An upstream's answer whose first body chunk is already in hand.

    `chunks` raises `UpstreamInterrupted` if the upstream breaks off. `headers` are filtered: safe
    to pass on to the client.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    chunks: AsyncIterator[bytes]
    is_stream: bool
