"""The router's calls that need no task: see `shared.http.express`."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import Scope as AsgiScope

from router.api.inference import CALL, Head, InferenceRoutes
from router.dispatch.trip import Begun
from shared.http.errors import UpstreamFailed
from shared.http.exchange import Reply
from shared.http.express import ExpressCall, ExpressLane, Forwarded
from shared.http.guard import CONTEXT, Guard, RequestContext
from shared.http.lean_transport import LeanTransport
from shared.http.transport import Transport


class RouterLane(ExpressLane[Head]):
    """Sends plain calls where their models are served."""

    def __init__(self, guard: Guard, routes: InferenceRoutes, transport: LeanTransport) -> None:
        """Take what `routes` would, and send it by `transport`."""
        super().__init__(
            guard,
            routes.paths,
            max_body_bytes=routes.max_body_bytes,
            deadline_s=routes.dispatcher.deadline_s,
        )
        self._routes = routes
        self._dispatcher = routes.dispatcher
        self._transport = transport

    def head_of(self, scope: AsgiScope) -> Head:
        """See `ExpressLane.head_of`."""
        return self._routes.head_of(scope)

    def holds(self, head: Head) -> bool:
        """See `ExpressLane.holds`."""
        return self._routes.holds(head)

    def begin(
        self, scope: AsgiScope, context: RequestContext, body: bytes, head: Head
    ) -> ExpressCall | None:
        """See `ExpressLane.begin`."""
        call = self._routes.call_of(head, context, body)
        begun = None if call.facts.stream else self._dispatcher.begin_now(call, context.notes)
        if begun is None:  # the task need not read it again
            scope[CONTEXT] = context
            scope[CALL] = call
            raise Forwarded
        made = _RouterCall(self, self._routes, context, begun)
        try:
            self._send(made)
        except Exception as defect:  # noqa: BLE001 - a place is taken: the task gives it back
            made.defect = defect
        return made

    def _send(self, made: _RouterCall) -> None:
        backend = self._dispatcher.plain_backend(made.begun)
        if backend is None:
            return
        attempt = made.begun.attempt
        deployment = attempt.place.ranked.candidate.deployment
        try:
            exchange = self._transport.send_now(backend.plain_request(deployment, attempt.call))
        except UpstreamFailed:
            return
        if exchange is not None:
            attempt.sent(backend, exchange)
            made.exchange = exchange


def express_lane(guard: Guard, routes: InferenceRoutes, transport: Transport) -> RouterLane | None:
    """Return the lane of a router; None if its transport needs tasks."""
    return RouterLane(guard, routes, transport) if isinstance(transport, LeanTransport) else None


class _RouterCall(ExpressCall):
    __slots__ = ("_routes", "begun")

    def __init__(
        self,
        lane: RouterLane,
        routes: InferenceRoutes,
        context: RequestContext,
        begun: Begun,
    ) -> None:
        super().__init__(lane, context, None)
        self._routes = routes
        self.begun = begun

    def answer_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """See `ExpressCall.answer_headers`."""
        attempt, trip = self.begun.attempt, self.begun.trip
        return self._routes.route_headers(
            self.context,
            trip.model,
            ranked=attempt.place.ranked,
            attempts=trip.attempts,
            sent_at=attempt.sent_at,
            queued_s=0.0,
        )

    def end(self, reply: Reply | None, error: BaseException | None) -> None:
        """See `ExpressCall.end`."""
        self.begun.attempt.end(reply, error)
