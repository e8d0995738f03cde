"""Routes without the web framework: what is asked for all the time, and what a start has to answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from router.api.access import Access
from router.domain import Scope
from shared.http.asgi import send_body
from shared.http.errors import MethodNotAllowed, no_route

_ALLOW = (("allow", "GET, HEAD"),)
FRAMEWORKS = ("/internal/", "/docs", "/openapi.json", "/errors/")
"""How the paths begin that the framework serves; a test compares them with its routes."""


class Answer(msgspec.Struct, frozen=True):
    """What a route answers: always whole."""

    body: bytes
    status: int = 200
    media_type: bytes = b"application/json"


class PlainRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route that is read with GET.

    A `path` that ends with `{NAME}` is that of all paths which begin like it, and `answer` gets the
    rest, slashes included. `needed` is what a key must be allowed to do, None if there need not be
    one; `ROUTER_PUBLIC_ROUTES` may list `name` to open it. Without a `summary` it is left out of the
    documentation.
    """

    path: str
    answer: Callable[..., Answer]
    needed: Scope | None
    tag: str
    summary: str = ""
    name: str = ""

    @property
    def parameter(self) -> str:
        """Return the name of what the path ends with; empty if it is one path."""
        return self.path.partition("{")[2].rstrip("}")


class PlainRoutes:
    """Serves its routes; hands what is the framework's on, and there is nothing else."""

    def __init__(self, framework: ASGIApp, *, access: Access, routes: Sequence[PlainRoute]) -> None:
        """Stand in front of `framework`, which is asked for paths that begin with `FRAMEWORKS`."""
        self._framework = framework
        self._access = access
        self._routes = {route.path: route for route in routes if not route.parameter}
        self._prefixes = [
            (route.path.partition("{")[0], route) for route in routes if route.parameter
        ]

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        path: str = scope["path"]
        route, given = self._find(path)
        if route is None:
            if not path.startswith(FRAMEWORKS):
                raise no_route(path)
            await self._framework(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed("Use GET here.", headers=_ALLOW)
        self._access.check(scope, route.needed, route.name)
        answer = route.answer(*given)
        headers = ((b"content-type", answer.media_type),)
        await send_body(send, answer.status, headers, answer.body)

    def _find(self, path: str) -> tuple[PlainRoute | None, tuple[str, ...]]:
        route = self._routes.get(path)
        if route is not None:
            return route, ()
        for prefix, each in self._prefixes:
            if path.startswith(prefix):
                return each, (path[len(prefix) :],)
        return None, ()
