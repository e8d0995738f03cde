"""Routes without the web framework: what is asked for all the time, and what a start has to answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.http.asgi import route_path, send_body
from shared.http.body_limit import BodyLimit
from shared.http.errors import MethodNotAllowed, no_route
from shared.http.later import LoadedLater

_ALLOW = (("allow", "GET, HEAD"),)
_BODY_BYTES = 1024 * 1024
_NAMES = re.compile(r"\W+")
NeedT = TypeVar("NeedT")
"""What a service's routes may need of who asks."""


class Answer(msgspec.Struct, frozen=True):
    """What a route answers: always whole."""

    body: bytes
    status: int = 200


_ALIVE = Answer(b'{"status":"ok"}')


class PlainRoute(msgspec.Struct, Generic[NeedT], frozen=True, kw_only=True):
    """A route that is read with GET.

    A `path` that ends with `{NAME}` is that of all paths which begin like it, and `answer` gets the
    rest, slashes included. `needed` is what who asks must be allowed to do; a setting may list `name`
    to open the route to all. Without a `summary` it is left out of the documentation.
    """

    path: str
    answer: Callable[..., Answer]
    needed: NeedT
    tag: str
    summary: str = ""
    name: str = ""
    media_type: str = "application/json"

    @property
    def parameter(self) -> str:
        """Return the name of what the path ends with; empty if it is one path."""
        return self.path.partition("{")[2].rstrip("}")

    def described(self) -> dict[str, Any]:
        """Return what an OpenAPI document says of the path."""
        media_type = self.media_type.partition(";")[0]
        schema = {"type": "object" if media_type == "application/json" else "string"}
        answer = {"description": "As it is now.", "content": {media_type: {"schema": schema}}}
        shown: dict[str, Any] = {
            "tags": [self.tag],
            "summary": self.summary,
            "operationId": _NAMES.sub("_", f"get{self.path}").strip("_"),
            "responses": {"200": answer},
        }
        if name := self.parameter:
            place = {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            shown["parameters"] = [place]
        return {"get": shown}


NeedT_contra = TypeVar("NeedT_contra", contravariant=True)


class Access(Protocol[NeedT_contra]):
    """Who may ask what; both raise `ApiError` for who may not."""

    def check(self, scope: Scope, needed: NeedT_contra, name: str = "") -> object:
        """Check the sender of a request to a route with that need and name."""
        ...

    def check_route(self, scope: Scope) -> object:
        """Check the sender of a request that the framework has routed."""
        ...


class PlainRoutes(Generic[NeedT]):
    """Serves its routes; hands what is the framework's on, and there is nothing else."""

    def __init__(
        self,
        routes: Sequence[PlainRoute[NeedT]],
        *,
        access: Access[NeedT],
        build: Callable[[], ASGIApp],
        paths: Sequence[str],
    ) -> None:
        """Serve `routes`.

        Args:
            routes: no path is there twice.
            access: says who may ask what.
            build: makes the framework's application, once it is asked for.
            paths: those that it serves; what ends with a slash is how some begin.
        """
        self._check = access.check
        self._paths = frozenset(path for path in paths if not path.endswith("/"))
        self._below = tuple(path for path in paths if path.endswith("/"))
        self.framework = LoadedLater(
            lambda: BodyLimit(build(), _BODY_BYTES, authorize=access.check_route)
        )
        self._routes = {route.path: route for route in routes if not route.parameter}
        self._prefixes = [
            (route.path.partition("{")[0], route) for route in routes if route.parameter
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        path = route_path(scope)
        route, given = self._find(path)
        if route is None:
            if path not in self._paths and not path.startswith(self._below):
                raise no_route(path)
            await self.framework(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            raise MethodNotAllowed("Use GET or HEAD here.", headers=_ALLOW)
        self._check(scope, route.needed, route.name)
        answer = route.answer(*given)
        headers = ((b"content-type", route.media_type.encode()),)
        await send_body(send, answer.status, headers, answer.body)

    def _find(self, path: str) -> tuple[PlainRoute[NeedT] | None, tuple[str, ...]]:
        route = self._routes.get(path)
        if route is not None:
            return route, ()
        for prefix, each in self._prefixes:
            if path.startswith(prefix):
                return each, (path[len(prefix) :],)
        return None, ()


def operation_routes(
    readyz: Callable[[], Answer],
    registry: CollectorRegistry,
    *,
    nothing: NeedT,
    metrics: NeedT,
    ready: str,
) -> Sequence[PlainRoute[NeedT]]:
    """Return `/health`, `/livez`, `/readyz` and `/metrics`.

    Args:
        readyz: what the third answers.
        registry: what the last one shows.
        nothing: what the first three need.
        metrics: what the last one needs, unless `metrics` is listed as open.
        ready: the summary of the third.
    """

    def exposed() -> Answer:
        return Answer(generate_latest(registry))

    def route(path: str, summary: str, answer: Callable[[], Answer]) -> PlainRoute[NeedT]:
        return PlainRoute(
            path=path, summary=summary, answer=answer, tag="operation", needed=nothing
        )

    return (
        route("/health", "Alive", lambda: _ALIVE),
        route("/livez", "Alive", lambda: _ALIVE),
        route("/readyz", ready, readyz),
        PlainRoute(
            path="/metrics",
            summary="Prometheus metrics",
            answer=exposed,
            tag="operation",
            needed=metrics,
            name="metrics",
            media_type=CONTENT_TYPE_LATEST,
        ),
    )
