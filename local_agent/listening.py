"""Where the agent listens, and under which URL it can be reached."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress

from shared.http.serve import PortTaken, bind

DEFAULT_PORT = 5000
# AirPlay listens on 5000 of a Mac; the ports from 5055 are free as a rule.
USUAL_PORTS = (DEFAULT_PORT, *range(5055, 5095))


def listen(host: str, port: int | None, usual: Sequence[int] = USUAL_PORTS) -> socket.socket:
    """Listen on `port`; without one on the first of the usual ports that is free.

    Raises:
        PortTaken: other programs have them.
        OSError: the address is not this machine's, or may not be used.
    """
    if port is not None:
        return bind(host, port)
    for candidate in usual:
        with suppress(PortTaken):
            return bind(host, candidate)
    raise PortTaken(f"Port {usual[0]} and {len(usual) - 1} more are taken.")


def own_url(host: str, port: int) -> str:
    """Return the agent's URL: never `localhost`, which AirPlay may answer on a Mac."""
    address = "127.0.0.1" if host in {"localhost", "0.0.0.0", "::"} else host
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
