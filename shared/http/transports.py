"""The transports by name. One is loaded only if it is chosen: aiohttp alone takes 12 MB."""

from __future__ import annotations

from typing import Literal

from shared.http.addresses import may_connect
from shared.http.transport import Transport

TransportName = Literal["lean", "aiohttp"]


def make_transport(name: TransportName) -> Transport:
    """Return a new transport; it connects nowhere yet, and never to a cloud's metadata service."""
    if name == "aiohttp":
        from shared.http.aiohttp_transport import AiohttpTransport  # noqa: PLC0415 - see above

        return AiohttpTransport(allow_address=may_connect)
    from shared.http.lean_transport import LeanTransport  # noqa: PLC0415 - likewise

    return LeanTransport(allow_address=may_connect)
