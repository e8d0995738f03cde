"""Asks engines whether they serve, through the same transport as requests."""

from __future__ import annotations

from contextlib import suppress

import anyio

from shared.http.errors import ApiError
from shared.http.transport import OutboundRequest, Timeouts, Transport

_JSON = (("content-type", "application/json"),)


class TransportProber:
    """`HttpProber` over a transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def ok(self, url: str, timeout_s: float) -> bool:
        """See `HttpProber.ok`."""
        request = OutboundRequest(method="GET", url=url, timeouts=_limits(timeout_s))
        return await self._status(request, timeout_s) == 200

    async def answers(self, url: str, body: bytes, timeout_s: float) -> bool:
        """See `HttpProber.answers`."""
        request = OutboundRequest(
            method="POST", url=url, headers=_JSON, body=body, timeouts=_limits(timeout_s)
        )
        return 0 < await self._status(request, timeout_s) < 500

    async def _status(self, request: OutboundRequest, timeout_s: float) -> int:
        """Return the status of an answer that came whole and in time, else 0."""
        with anyio.move_on_after(timeout_s), suppress(ApiError):
            async with self._transport.open(request) as response:
                # read to its end, so that the connection can be used again
                while await response.read():
                    pass
                return response.status
        return 0


def _limits(timeout_s: float) -> Timeouts:
    return Timeouts(connect_s=timeout_s, first_byte_s=timeout_s, idle_s=timeout_s)
