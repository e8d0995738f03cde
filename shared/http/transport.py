"""The seam below which HTTP is spoken to upstreams.

A transport opens one request at a time, never follows a redirect, keeps no cookies and reads no
proxy settings: what is sent where is decided above. It raises only errors of `shared.http.errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits of one exchange, in seconds.

    `connect_s`: until a connection is made. `first_byte_s`: from then to the end of the answer's
    head and the first byte of its body. `idle_s`: between two pieces of the body. `total_s`: from
    the start of the exchange to the last byte; None for none, since streams may be long.
    """

    connect_s: float = 5.0
    first_byte_s: float = 300.0
    idle_s: float = 120.0
    total_s: float | None = None


class OutboundRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to an upstream; `headers` are sent as they stand, plus what HTTP needs."""

    method: str
    url: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes | None = None
    timeouts: Timeouts = Timeouts()


class InboundResponse(Protocol):
    """An upstream's answer: the head is here, the body comes."""

    @property
    def status(self) -> int:
        """Return the status code."""
        ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Return the headers as they came."""
        ...

    async def read(self) -> bytes:
        """Return the next piece of the decoded body, as it arrived; `b""` once it has ended.

        Raises:
            UpstreamInterrupted: the connection broke, or the body is framed wrongly.
            UpstreamTimeout: a limit passed.
        """
        ...

    async def finish(self) -> None:
        """Read what may follow the end of the answer's content, for a moment; never raises."""
        ...


class Transport(Protocol):
    """Opens requests; shared by all of a process, with its pool of connections."""

    def open(self, request: OutboundRequest) -> AbstractAsyncContextManager[InboundResponse]:
        """Send the request and enter when the head of the answer is here.

        Leaving the context closes the connection unless the body was read to its end.

        Raises:
            UpstreamUnreachable: no connection could be made.
            UpstreamTimeout: a limit passed.
            UpstreamInterrupted: the connection broke before the head was complete.
            UpstreamFailed: the answer is not HTTP.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...
