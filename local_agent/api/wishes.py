"""What a client says of how it wants to wait, in its headers."""

from __future__ import annotations

from typing import NamedTuple

from starlette.types import Scope

from shared.http.asgi import header
from shared.http.errors import BadRequest
from shared.http.headers import wait_preference

_PRIORITIES = {b"low": -1, b"normal": 0, b"high": 1}


class Wishes(NamedTuple):
    """`wait_s` is how long the client waits at most for a load or a slot (None: as long as it takes).

    `priority`: among those who wait for one model, who has a higher one goes first.
    """

    wait_s: float | None = None
    priority: int = 0


_NONE = Wishes()


def wishes_of(scope: Scope) -> Wishes:
    """Return what `prefer: wait=SECONDS` and `x-iir-priority: low|normal|high` say.

    Raises:
        BadRequest: there is no such priority.
    """
    prefer, priority = header(scope, b"prefer"), header(scope, b"x-iir-priority")
    if prefer is None and priority is None:
        return _NONE
    level = _PRIORITIES.get((priority or b"normal").lower())
    if level is None:
        raise BadRequest("The header x-iir-priority must be one of: low, normal, high.")
    return Wishes(wait_preference(prefer), level)
