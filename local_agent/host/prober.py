"""Asks engines whether they serve, through the same transport as requests."""

from __future__ import annotations

import anyio

from shared.http.errors import ApiError
from shared.http.transport import OutboundRequest, Timeouts, Transport


class TransportProber:
    """`HttpProber` over a transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def ok(self, url: str, timeout_s: float) -> bool:
        """See `HttpProber.ok`."""
        limits = Timeouts(connect_s=timeout_s, first_byte_s=timeout_s, idle_s=timeout_s)
        request = OutboundRequest(method="GET", url=url, timeouts=limits)
        with anyio.move_on_after(timeout_s):
            return await self._answers_200(request)
        return False

    async def _answers_200(self, request: OutboundRequest) -> bool:
        try:
            async with self._transport.open(request) as response:
                # read to its end, so that the connection can be used again
                while await response.read():
                    pass
                return response.status == 200
        except ApiError:
            return False
