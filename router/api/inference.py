"""The inference routes as plain ASGI in front of FastAPI: the hot path."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from router.api.access import Access
from router.dispatch.dispatcher import Dispatched, Dispatcher, header_safe
from router.domain import Call, ModelName, RequestFacts, Scope, Zone
from shared.http.asgi import header, read_body, require_json
from shared.http.errors import BadRequest, MethodNotAllowed
from shared.http.guard import RequestContext, request_context
from shared.http.headers import pass_upstream
from shared.http.relay import relay, while_connected
from shared.http.wire import decode_object, model_name, wants_stream

INFERENCE_PATHS = ("/chat/completions", "/completions", "/embeddings")


class InferenceRoutes:
    """Serves the inference paths below `/v1`, and hands everything else on."""

    def __init__(
        self,
        rest: ASGIApp,
        *,
        access: Access,
        dispatcher: Dispatcher,
        max_body_bytes: int,
    ) -> None:
        self._rest = rest
        self._access = access
        self._dispatcher = dispatcher
        self._max_body_bytes = max_body_bytes
        self._paths = {f"/v1{path}": path for path in INFERENCE_PATHS}

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = self._paths.get(scope["path"]) if scope["type"] == "http" else None
        if path is None:
            await self._rest(scope, receive, send)
            return
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"Use POST for {scope['path']}.", headers=(("allow", "POST"),))
        call = await self._call(scope, receive, path)
        context = request_context(scope)
        async with (
            while_connected(receive) as stop_watching,
            self._dispatcher.dispatch(call) as dispatched,
        ):
            headers = _route_headers(dispatched, context)
            await relay(dispatched.reply, send, headers)
            stop_watching()

    async def _call(self, scope: AsgiScope, receive: Receive, path: str) -> Call:
        caller = self._access.require(scope, Scope.INFERENCE)
        if self._access.is_open(scope):
            require_json(scope)
        body = decode_object(await read_body(scope, receive, limit=self._max_body_bytes))
        facts = RequestFacts(
            request_id=request_context(scope).request_id,
            model=ModelName(model_name(body)),
            stream=wants_stream(body),
            path=path,
            key_id=caller.key_id,
            zone=_zone(scope),
        )
        return Call(facts, body, pass_upstream(scope["headers"]))


def _zone(scope: AsgiScope) -> Zone | None:
    given = header(scope, b"x-iir-zone")
    if given is None:
        return None
    try:
        return Zone(given.decode("latin-1"))
    except ValueError:
        known = ", ".join(zone.value for zone in Zone)
        raise BadRequest(f"The header x-iir-zone must be one of: {known}.") from None


def _route_headers(dispatched: Dispatched, context: RequestContext) -> list[tuple[bytes, bytes]]:
    endpoint = dispatched.ranked.candidate.deployment.endpoint
    overhead_ms = (dispatched.sent_at - context.started) * 1000
    context.notes.update(model=dispatched.model, endpoint=endpoint.id, attempts=dispatched.attempts)
    return [
        (b"x-iir-model", header_safe(dispatched.model).encode()),
        (b"x-iir-endpoint", header_safe(endpoint.id).encode()),
        (b"x-iir-zone", endpoint.zone.value.encode()),
        (b"x-iir-reason", dispatched.ranked.reason.encode()),
        (b"x-iir-attempts", str(dispatched.attempts).encode()),
        (b"x-iir-overhead-ms", f"{overhead_ms:.2f}".encode()),
    ]
