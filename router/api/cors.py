"""Web pages that may call the router (`ROUTER_CORS_ORIGINS`); none by default."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send

from shared.http.asgi import header
from shared.http.errors import ApiError
from shared.http.guard import Guard
from shared.http.origin import OriginRules

EXPOSED_HEADERS = (
    "link",
    "retry-after",
    "retry-after-ms",
    "request-id",
    "x-iir-attempts",
    "x-iir-endpoint",
    "x-iir-error-origin",
    "x-iir-model",
    "x-iir-reason",
    "x-iir-zone",
    "x-request-id",
    "x-should-retry",
    *(
        f"x-ratelimit-{kind}-{what}"
        for kind in ("limit", "remaining", "reset")
        for what in ("requests", "tokens")
    ),
)


class Pages:
    """Stands in front of the guard, so that pages that may call can read errors too.

    Preflights of other pages, or for other hosts, go to the guard and its errors.
    """

    def __init__(self, guarded: Guard, rules: OriginRules) -> None:
        """Wrap the guarded application."""
        self._guarded = guarded
        self.lane = guarded.lane
        if self.lane is not None:  # as the middleware has it, origin or not
            self.lane.further = ((b"vary", b"Origin"),)
        self._rules = rules
        self._cors = CORSMiddleware(
            guarded,
            allow_origins=sorted(rules.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        is_refused = scope["type"] == "http" and self._is_refused_preflight(scope)
        await (self._guarded if is_refused else self._cors)(scope, receive, send)

    def _is_refused_preflight(self, scope: Scope) -> bool:
        if scope["method"] != "OPTIONS" or header(scope, b"access-control-request-method") is None:
            return False
        origin = (header(scope, b"origin") or b"").decode("latin-1")
        try:
            self._rules.check_host(scope)
        except ApiError:
            return True
        return origin not in self._rules.allowed_origins
