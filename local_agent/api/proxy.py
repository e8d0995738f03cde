"""Inference by proxy: the request goes to the worker that carries the model, as it came."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from local_agent.api.access import AgentAccess, Need
from local_agent.api.infer import InferCall, infer_relay
from local_agent.domain import ModelId
from local_agent.errors import WorkerGone
from local_agent.supervisor import Supervisor
from shared.http.asgi import read_body
from shared.http.errors import (
    MethodNotAllowed,
    ModelNotFound,
    UpstreamInterrupted,
    UpstreamUnreachable,
)
from shared.http.exchange import Reply, exchange
from shared.http.guard import request_context
from shared.http.relay import relay, while_connected
from shared.http.transport import OutboundRequest, Timeouts, Transport
from shared.http.upstream_errors import upstream_error
from shared.http.wire import decode_object, encode_object, model_name, wants_stream

INFERENCE_PATHS = ("/chat/completions", "/completions", "/embeddings")
_RESTART_S = 10.0

Hook = Callable[[], object]


class Proxy:
    """Calls the worker of a model; loads the model first if it has to."""

    def __init__(
        self,
        supervisor: Supervisor,
        transport: Transport,
        *,
        timeouts: Timeouts,
        load_wait_s: float,
    ) -> None:
        self._supervisor = supervisor
        self._transport = transport
        self._timeouts = timeouts
        self._load_wait_s = load_wait_s

    def resolve(self, name: str) -> ModelId:
        """Return the model that `name` or an alias means.

        Raises:
            ModelNotFound: this agent does not know it.
        """
        model = self._supervisor.resolve(name)
        if model is None:
            raise ModelNotFound(
                f"This agent does not know the model {name!r}. GET /v1/models lists what it has.",
                param="model",
            )
        return model

    @asynccontextmanager
    async def call(
        self,
        model: ModelId,
        path: str,
        values: Mapping[str, object],
        *,
        stream: bool,
        request_id: str,
    ) -> AsyncIterator[Reply]:
        """Enter with the worker's reply.

        Raises:
            ApiError: the model can't be had now, or the worker failed before its first byte.
        """
        upstream = await self._supervisor.ensure_ready(
            model, self._load_wait_s, request_id=request_id
        )
        with self._supervisor.slot(model):
            request = OutboundRequest(
                method="POST",
                url=f"{upstream.base_url}{path}",
                headers=(
                    ("content-type", "application/json"),
                    ("accept", "text/event-stream" if stream else "application/json"),
                    ("x-request-id", request_id),
                ),
                body=encode_object({**values, "model": upstream.model}),
                timeouts=self._timeouts,
            )
            async with self._exchange(request) as reply:
                yield reply

    @asynccontextmanager
    async def _exchange(self, request: OutboundRequest) -> AsyncIterator[Reply]:
        is_committed = False
        try:
            async with exchange(self._transport, request) as reply:
                if reply.status >= 400:
                    await _raise_for(reply)
                is_committed = True
                yield reply
        except (UpstreamUnreachable, UpstreamInterrupted) as error:
            if is_committed:
                raise
            raise WorkerGone(
                "The worker of this model has just ended and is being started again.",
                retry_after_s=_RESTART_S,
            ) from error


async def _raise_for(reply: Reply) -> None:
    """Raise the engine's error, in the one shape; a refused credential is no business of the client's."""
    body = await reply.whole()
    status = 502 if reply.status in {401, 403} else reply.status
    raise upstream_error(status, body, reply.headers)


class InferenceRoutes:
    """Serves the inference paths and `/infer`, and hands everything else on."""

    def __init__(
        self, rest: ASGIApp, *, proxy: Proxy, access: AgentAccess, max_body_bytes: int
    ) -> None:
        self._rest = rest
        self._proxy = proxy
        self._access = access
        self._max_body_bytes = max_body_bytes
        self._paths = {f"/v1{path}": path for path in INFERENCE_PATHS} | {"/infer": "/infer"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = self._paths.get(scope["path"]) if scope["type"] == "http" else None
        if path is None:
            await self._rest(scope, receive, send)
            return
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"Use POST for {scope['path']}.", headers=(("allow", "POST"),))
        self._access.require(scope, Need.DATA)
        body = await read_body(scope, receive, limit=self._max_body_bytes)
        async with while_connected(scope, receive) as stop_watching:
            if path == "/infer":
                await self._infer(scope, body, send, stop_watching)
            else:
                await self._pass(scope, path, body, send, stop_watching)

    async def _pass(self, scope: Scope, path: str, body: bytes, send: Send, answered: Hook) -> None:
        values = decode_object(body)
        stream = wants_stream(values)
        model = self._proxy.resolve(model_name(values))
        context = request_context(scope)
        context.notes["model"] = model
        call = self._proxy.call(model, path, values, stream=stream, request_id=context.request_id)
        async with call as reply:
            await relay(reply, send)
            answered()

    async def _infer(self, scope: Scope, body: bytes, send: Send, answered: Hook) -> None:
        infer = InferCall.parse(body)
        model = self._proxy.resolve(infer.model)
        context = request_context(scope)
        context.notes["model"] = model
        call = self._proxy.call(
            model,
            "/chat/completions",
            infer.chat_values(),
            stream=infer.stream,
            request_id=context.request_id,
        )
        async with call as reply:
            await infer_relay(reply, model, send)
            answered()
