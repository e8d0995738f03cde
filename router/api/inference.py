"""The router's inference: read, dispatch, relay."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from router.api.access import Access
from router.dispatch.dispatcher import Dispatched, Dispatcher, header_safe
from router.dispatch.metrics import RouterMetrics
from router.domain import Call, ModelName, RequestFacts, Scope, Zone
from shared.http.asgi import header, read_body, require_json
from shared.http.errors import BadRequest
from shared.http.guard import RequestContext, request_context
from shared.http.headers import pass_upstream, wait_preference
from shared.http.inference import InferenceFront
from shared.http.relay import relay, while_connected
from shared.http.streams import STREAM_RULES
from shared.http.wire import decode_object, model_name, wants_stream


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
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

    async def _serve(self, scope: AsgiScope, receive: Receive, send: Send, path: str) -> None:
        call = await self._call(scope, receive, path)
        context = request_context(scope)
        waiting = self._waiting(scope, send, path, is_stream=call.facts.stream)
        async with (
            while_connected(scope, receive) as stop_watching,
            waiting,
            self._dispatcher.dispatch(call, context.notes) as dispatched,
        ):
            await waiting.stop()
            headers = self._route_headers(dispatched, context)
            failure = await relay(dispatched.reply, send, headers, has_begun=waiting.has_begun)
            stop_watching()
            context.note_error(failure)

    async def _call(self, scope: AsgiScope, receive: Receive, path: str) -> Call:
        caller = self._access.require(scope, Scope.INFERENCE)
        if self._access.is_open(scope):
            require_json(scope)
        body = decode_object(await read_body(scope, receive, limit=self._max_body_bytes))
        facts = RequestFacts(
            request_id=request_context(scope).request_id,
            model=ModelName(model_name(body)),
            stream=wants_stream(body) and path in STREAM_RULES,
            path=path,
            key_id=caller.key_id,
            zone=_zone(scope),
        )
        wait_s = wait_preference(header(scope, b"prefer"))
        return Call(facts, body, pass_upstream(scope["headers"]), wait_s)

    def _route_headers(
        self, dispatched: Dispatched, context: RequestContext
    ) -> list[tuple[bytes, bytes]]:
        endpoint = dispatched.ranked.candidate.deployment.endpoint
        overhead_s = dispatched.sent_at - context.started - dispatched.queued_s
        self._metrics.served(overhead_s, dispatched.queued_s)
        return [
            (b"x-iir-model", header_safe(dispatched.model).encode()),
            (b"x-iir-endpoint", header_safe(endpoint.id).encode()),
            (b"x-iir-zone", endpoint.zone.value.encode()),
            (b"x-iir-reason", dispatched.ranked.reason.encode()),
            (b"x-iir-attempts", b"%d" % dispatched.attempts),
            (b"x-iir-overhead-ms", b"%.2f" % (overhead_s * 1000)),
            (b"x-iir-queue-ms", b"%.0f" % (dispatched.queued_s * 1000)),
        ]


def _zone(scope: AsgiScope) -> Zone | None:
    given = header(scope, b"x-iir-zone")
    if given is None:
        return None
    try:
        return Zone(given.decode("latin-1"))
    except ValueError:
        known = ", ".join(zone.value for zone in Zone)
        raise BadRequest(f"The header x-iir-zone must be one of: {known}.") from None
