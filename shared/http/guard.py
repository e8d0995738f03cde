"""The outermost ASGI layer of a service: request ids, the host rule, the last error handler, the log.

Plain ASGI, because `BaseHTTPMiddleware` costs more than everything else on a request's way and
breaks streaming's cancellation.
"""

from __future__ import annotations

import asyncio
import re
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.http.asgi import ClientGone, header, send_error
from shared.http.errors import ApiError, Origin, ShuttingDown, internal_error
from shared.http.origin import OriginRules
from shared.kit.clock import Clock
from shared.kit.logs import LineWriter, get_logger, places

if TYPE_CHECKING:
    from shared.http.express import ExpressLane

_SANE_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")
CONTEXT = "iir"
"""The key of a scope under which the request's context is kept, once it was let in."""
# asked several times a second while others wait; worth a line only when something is wrong
_PROBES = frozenset({"/health", "/livez", "/readyz"})


class RequestContext(msgspec.Struct):
    """What belongs to one request from its first to its last byte.

    `started` is on the service's monotonic clock, in seconds. `notes` go into the request's log
    line: names and numbers only. `id_header` is where this API's SDKs look for the request's id, if
    that is not `x-request-id`, which every answer has.
    """

    request_id: str
    started: float
    notes: dict[str, Any] = msgspec.field(default_factory=dict)
    id_header: bytes | None = None

    def note_error(self, error: ApiError | None) -> None:
        """Have the log line name what went wrong, if anything did, whatever status the client got."""
        if error is not None:
            self.notes["error"] = error.code[:64]


def request_context(scope: Scope) -> RequestContext:
    """Return the context that the guard gave this request."""
    context: RequestContext = scope[CONTEXT]
    return context


class Guard:
    """Wraps a service's application; every request passes here first and leaves here last."""

    def __init__(
        self, app: ASGIApp, *, rules: OriginRules, clock: Clock, origin: Origin = "router"
    ) -> None:
        """Wrap `app`; `origin` is what this service calls itself in `x-iir-error-origin`."""
        self._app = app
        self._rules = rules
        self._clock = clock
        self._origin = origin
        self._log = get_logger("request")
        self._lines = LineWriter("request")
        self.lane: ExpressLane[Any] | None = None
        self._id_source = Random()  # noqa: S311 - ids tell requests apart, and guard nothing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the application's start and stop."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def admit(self, scope: Scope) -> RequestContext:
        """Return the context of a request that may come in.

        Raises:
            ApiError: it may not.
        """
        self._rules.check_host(scope)
        return self.context(scope)

    def context(self, scope: Scope) -> RequestContext:
        """Return the context of a request whose head was let in before."""
        return RequestContext(self._request_id(scope), self._clock())

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = scope.get(CONTEXT)
        is_admitted = context is not None
        if context is None:
            context = scope[CONTEXT] = self.context(scope)
        tracked = _TrackedSend(send, context)
        try:
            if not is_admitted:
                self._rules.check_host(scope)
            await self._app(scope, receive, tracked)
        except ClientGone:
            context.notes["outcome"] = "abandoned"
        except asyncio.CancelledError:
            # the server stops; it expects the task to end, and would log its cancellation as a defect
            context.notes["outcome"] = "cut"
            with anyio.CancelScope(shield=True):
                await self._fail(_stopping(), tracked, context)
        except Exception as exc:  # noqa: BLE001 - the last handler: the client gets an envelope
            await self._fail(exc, tracked, context)
        self.note(scope, context, tracked.status)

    def note(self, scope: Scope, context: RequestContext, status: int | None) -> None:
        """Write a request's line, now that it is over; without a `status` no answer had begun."""
        path = scope["path"]
        is_probe = status == 200 and path in _PROBES
        (self._lines.debug if is_probe else self._lines.info)(
            "request",
            {
                "request_id": context.request_id,
                "method": scope["method"],
                "path": path[:128],
                "status": status,
                "duration_ms": round((self._clock() - context.started) * 1000, 2),
                **context.notes,
            },
        )

    def _request_id(self, scope: Scope) -> str:
        given = header(scope, b"x-request-id")
        if given is not None and _SANE_ID.fullmatch(given):
            return given.decode()
        return f"req_{self._id_source.getrandbits(96):024x}"

    async def _fail(self, exc: Exception, tracked: _TrackedSend, context: RequestContext) -> None:
        if isinstance(exc, ApiError):
            error = exc
            context.note_error(exc)
        else:
            # the trace names code, never values: messages of foreign errors may quote the request
            self._log.error("internal_error", kind=type(exc).__name__, trace=places(exc))
            error = internal_error()
        if error.origin == "router":
            error.origin = self._origin
        # an answer that has begun can't be taken back: returning without its end makes the server
        # cut the connection, so that nobody takes it for whole
        if tracked.status is None:
            await send_error(tracked, error)


def _stopping() -> ApiError:
    return ShuttingDown("The service is stopping. Ask again in a moment.", retry_after_s=2)


class _TrackedSend:
    """Adds the request id to the answer's head and remembers its status."""

    __slots__ = ("_context", "_send", "status")

    def __init__(self, send: Send, context: RequestContext) -> None:
        self._send = send
        self._context = context
        self.status: int | None = None

    @property
    def inner(self) -> Send:
        """Return what gets the messages: bodies go through as they are (`cycle_of`)."""
        return self._send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            request_id = self._context.request_id.encode()
            headers = [*message.get("headers", ()), (b"x-request-id", request_id)]
            if self._context.id_header is not None:
                headers.append((self._context.id_header, request_id))
            message["headers"] = headers
        await self._send(message)
