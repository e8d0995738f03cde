"""What FastAPI serves, and that its first request loads it."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp

from router.api.access import Access
from shared.http.body_limit import BodyLimit
from shared.http.later import LoadedLater

FRAMEWORKS = ("/internal/", "/docs", "/docs/", "/openapi.json", "/errors/")
"""Its paths, and below what others are."""
_BODY_BYTES = 1024 * 1024


def framework(build: Callable[[Access], ASGIApp], access: Access) -> LoadedLater:
    """Return the application that `build` makes when it is first asked, behind the limits of bodies."""

    def limited() -> ASGIApp:
        return BodyLimit(build(access), _BODY_BYTES, authorize=access.check_route)

    return LoadedLater(limited)
