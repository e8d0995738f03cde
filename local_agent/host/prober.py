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
        return await self._get(url, timeout_s, None) is not None

    async def text(self, url: str, timeout_s: float, most_bytes: int) -> str | None:
        """See `HttpProber.text`."""
        found = await self._get(url, timeout_s, most_bytes)
        return None if found is None else found.decode(errors="replace")

    async def _get(self, url: str, timeout_s: float, most_bytes: int | None) -> bytes | None:
        """Return the body of a 200, or nothing of it if it is not wanted (`most_bytes` is None)."""
        limits = Timeouts(connect_s=timeout_s, first_byte_s=timeout_s, idle_s=timeout_s)
        request = OutboundRequest(method="GET", url=url, timeouts=limits)
        with anyio.move_on_after(timeout_s):
            try:
                return await self._read(request, most_bytes)
            except ApiError:
                return None
        return None

    async def _read(self, request: OutboundRequest, most_bytes: int | None) -> bytes | None:
        kept = bytearray()
        async with self._transport.open(request) as response:
            # read to its end, so that the connection can be used again
            while part := await response.read():
                kept += part if most_bytes is not None else b""
                if most_bytes is not None and len(kept) > most_bytes:
                    return None
            return bytes(kept) if response.status == 200 else None
