"""The router's inference: read, dispatch, relay."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from router.api.access import Access, Caller
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.metrics import RouterMetrics
from router.dispatch.trip import Begun, header_safe
from router.domain import (
    Call,
    KeyId,
    ModelName,
    Ranked,
    RequestFacts,
    Scope,
    Zone,
)
from shared.http.asgi import header, read_body, require_json
from shared.http.errors import BadRequest
from shared.http.express import BEGUN
from shared.http.guard import RequestContext, request_context
from shared.http.headers import pass_upstream, wait_preference
from shared.http.inference import InferenceFront
from shared.http.relay import relay, while_connected
from shared.http.streams import STREAM_RULES
from shared.http.wire import decode_object, model_name, wants_stream

CALL = "iir.call"
"""The key of a scope under which a call is kept that was read already, and not begun."""


class Head(msgspec.Struct, frozen=True):
    """What a request's head says of a call, as long as the keys are those of the catalog `stamp`."""

    stamp: int
    key_id: KeyId | None
    path: str
    zone: Zone | None
    headers: tuple[tuple[str, str], ...]
    wait_s: float | None


class InferenceRoutes(InferenceFront):
    """Sends each request where its model is served."""

    def __init__(
        self,
        rest: ASGIApp,
        *,
        access: Access,
        dispatcher: Dispatcher,
        metrics: RouterMetrics,
        max_body_bytes: int,
        keep_alive_s: float,
    ) -> None:
        super().__init__(rest, keep_alive_s=keep_alive_s)
        self._access = access
        self.dispatcher = dispatcher
        self._metrics = metrics
        self.max_body_bytes = max_body_bytes

    async def _serve(self, scope: AsgiScope, receive: Receive, send: Send, path: str) -> None:
        context = request_context(scope)
        begun: Begun | None = None
        handed = scope.pop(BEGUN, None)
        if handed is None:
            call = scope.pop(CALL, None) or await self._call(scope, receive, path)
        else:
            begun = handed.begun
            call = begun.trip.call
            begun.defect = handed.defect
        waiting = self._waiting(scope, send, path, is_stream=call.facts.stream)
        async with (
            while_connected(scope, receive) as stop_watching,
            waiting,
            self.dispatcher.dispatch(call, context.notes, begun) as dispatched,
        ):
            await waiting.stop()
            headers = self.route_headers(
                context,
                dispatched.model,
                ranked=dispatched.ranked,
                attempts=dispatched.attempts,
                sent_at=dispatched.sent_at,
                queued_s=dispatched.queued_s,
            )
            failure = await relay(dispatched.reply, send, headers, has_begun=waiting.has_begun)
            stop_watching()
            context.note_error(failure)

    async def _call(self, scope: AsgiScope, receive: Receive, path: str) -> Call:
        caller = self._caller(scope)
        body = await read_body(scope, receive, limit=self.max_body_bytes)
        return self.call_of(self._head(scope, caller, path), request_context(scope), body)

    def _caller(self, scope: AsgiScope) -> Caller:
        caller = self._access.require(scope, Scope.INFERENCE)
        if caller.key_id is None:  # it is open to all on this machine, pages in a browser too
            require_json(scope)
        return caller

    def head_of(self, scope: AsgiScope) -> Head:
        """Return what the head of a POST request to one of `paths` says.

        Raises:
            ApiError: the request is refused.
        """
        return self._head(scope, self._caller(scope), self.paths[scope["path"]])

    def holds(self, head: Head) -> bool:
        """Tell whether a head means what it meant: keys may have been made or revoked."""
        return head.stamp == self._access.stamp

    def _head(self, scope: AsgiScope, caller: Caller, path: str) -> Head:
        return Head(
            self._access.stamp,
            caller.key_id,
            path,
            _zone(scope),
            pass_upstream(scope["headers"]),
            wait_preference(header(scope, b"prefer")),
        )

    def call_of(self, head: Head, context: RequestContext, whole: bytes) -> Call:
        """Return the call that a request with this head and the body `whole` makes.

        Raises:
            ApiError: it makes none.
        """
        self.set_id_header(head.path, context)
        body = decode_object(whole)
        facts = RequestFacts(
            request_id=context.request_id,
            model=ModelName(model_name(body)),
            stream=wants_stream(body) and head.path in STREAM_RULES,
            path=head.path,
            key_id=head.key_id,
            zone=head.zone,
        )
        return Call(facts, body, head.headers, head.wait_s)

    def route_headers(
        self,
        context: RequestContext,
        model: ModelName,
        *,
        ranked: Ranked,
        attempts: int,
        sent_at: float,
        queued_s: float,
    ) -> Sequence[tuple[bytes, bytes]]:
        """Return what an answer's head tells of its way, and count what that took."""
        endpoint = ranked.candidate.deployment.endpoint
        overhead_s = sent_at - context.started - queued_s
        self._metrics.served(overhead_s, queued_s)
        return (
            *_way(model, endpoint.id, endpoint.zone, ranked.reason, attempts),
            (b"x-iir-overhead-ms", b"%.2f" % (overhead_s * 1000)),
            (b"x-iir-queue-ms", b"%.0f" % (queued_s * 1000)),
        )


@lru_cache(maxsize=256)
def _way(
    model: str, endpoint: str, zone: Zone, reason: str, attempts: int
) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"x-iir-model", header_safe(model).encode()),
        (b"x-iir-endpoint", header_safe(endpoint).encode()),
        (b"x-iir-zone", zone.value.encode()),
        (b"x-iir-reason", reason.encode()),
        (b"x-iir-attempts", b"%d" % attempts),
    )


def _zone(scope: AsgiScope) -> Zone | None:
    given = header(scope, b"x-iir-zone")
    if given is None:
        return None
    try:
        return Zone(given.decode("latin-1"))
    except ValueError:
        known = ", ".join(zone.value for zone in Zone)
        raise BadRequest(f"The header x-iir-zone must be one of: {known}.") from None
