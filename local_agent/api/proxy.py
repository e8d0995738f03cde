"""Inference by proxy: the request goes to the worker that carries the model, as it came."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from local_agent.admission import Place
from local_agent.api.access import AgentAccess, Need
from local_agent.api.infer import InferCall, infer_relay
from local_agent.api.wishes import Wishes, wishes_of
from local_agent.domain import ModelId
from local_agent.errors import WorkerGone
from local_agent.intake import Intake
from local_agent.supervisor import Supervisor
from shared.http.asgi import read_body
from shared.http.errors import (
    ModelNotFound,
    StaleConnection,
    UnsupportedApi,
    UpstreamFailed,
    UpstreamInterrupted,
    UpstreamUnreachable,
)
from shared.http.exchange import Reply, exchange, exchange_opened
from shared.http.express import BEGUN
from shared.http.guard import RequestContext, request_context
from shared.http.headers import pass_upstream
from shared.http.inference import InferenceFront
from shared.http.relay import relay, while_connected
from shared.http.streams import STREAM_RULES, StreamRules
from shared.http.transport import InboundResponse, OutboundRequest, Timeouts, Transport
from shared.http.upstream_errors import status_for_client, upstream_error
from shared.http.wire import decode_object, encode_object, model_name, wants_stream

_CHAT = "/chat/completions"
_INFER = "/infer"
_RESTART_S = 10.0
_JSON = ("content-type", "application/json")
_ACCEPT = {True: ("accept", "text/event-stream"), False: ("accept", "application/json")}
_SECOND_ATTEMPT = (b"x-iir-attempts", b"2")

Opening = AbstractAsyncContextManager[InboundResponse]
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

    def resolve(self, name: str, path: str) -> ModelId:
        """Return the model that `name` or an alias means, for a request to the route `path`.

        Raises:
            ModelNotFound: this agent does not know it.
            UnsupportedApi: its engine does not serve this route.
        """
        model = self._supervisor.resolve(name)
        if model is None:
            raise ModelNotFound(
                f"This agent does not know the model {name!r}. GET /v1/models lists what it has.",
                param="model",
            )
        if not self._supervisor.speaks(model, path):
            raise UnsupportedApi(
                f"The engine of the model {name!r} does not speak {path}. If it is a server of yours that "
                "does, say so: `apis:` in the agent's YAML file.",
                param="model",
            )
        return model

    def begin_now(
        self,
        model: ModelId,
        path: str,
        values: Mapping[str, object],
        context: RequestContext,
        headers: Sequence[tuple[str, str]],
    ) -> tuple[Place, OutboundRequest] | None:
        """Return a slot of the worker and the plain call for it; None if it would have to wait."""
        place = self._supervisor.admission.admit_now(model)
        if place is None:
            return None
        try:
            request = self._request(place, path, values, context, headers, stream=False)
        except BaseException:
            place.__exit__(None, None, None)
            raise
        context.notes["model"] = model
        return place, request

    @asynccontextmanager
    async def resume(self, begun: BegunCall, sent: Opening | None) -> AsyncIterator[Reply]:
        """Do as `call`, with one that was begun, and `sent` unless that is None."""
        rules = STREAM_RULES.get(begun.path)
        async with self._exchange(begun.request, rules, begun.context, sent) as reply:
            yield reply

    @asynccontextmanager
    async def call(
        self,
        model: ModelId,
        path: str,
        values: Mapping[str, object],
        *,
        stream: bool,
        context: RequestContext,
        wishes: Wishes,
        headers: Sequence[tuple[str, str]] = (),
    ) -> AsyncIterator[Reply]:
        """Enter with the worker's reply; it is a stream if one is asked for.

        Args:
            model: an id, as `resolve` gives it.
            path: the engine's route, relative to the API base.
            values: the body's top level; `model` becomes what the engine calls it.
            stream: whether the body asks for a stream.
            context: the request's, for its id and its log line.
            wishes: how long it waits, and whom it lets go first.
            headers: what goes on of the client's headers.

        Raises:
            ApiError: the model can't be had now, or the worker failed before its first byte.
        """
        context.notes["model"] = model
        place = await self._supervisor.admission.admit(
            model,
            load_wait_s=self._load_wait_s,
            wait_s=wishes.wait_s,
            priority=wishes.priority,
            request_id=context.request_id,
        )
        with place:
            if place.waited_s:
                context.notes["queue_ms"] = round(place.waited_s * 1000)
            request = self._request(place, path, values, context, headers, stream=stream)
            async with self._exchange(request, STREAM_RULES.get(path), context) as reply:
                if stream and not reply.is_stream:
                    raise UpstreamFailed("The engine was asked for a stream and did not send one.")
                yield reply

    def _request(
        self,
        place: Place,
        path: str,
        values: Mapping[str, object],
        context: RequestContext,
        headers: Sequence[tuple[str, str]],
        *,
        stream: bool,
    ) -> OutboundRequest:
        return OutboundRequest(
            method="POST",
            url=f"{place.upstream.base_url}{path}",
            headers=(_JSON, _ACCEPT[stream], ("x-request-id", context.request_id), *headers),
            body=encode_object({**values, "model": place.upstream.model}),
            timeouts=self._timeouts,
        )

    @asynccontextmanager
    async def _exchange(
        self,
        request: OutboundRequest,
        rules: StreamRules | None,
        context: RequestContext,
        sent: Opening | None = None,
    ) -> AsyncIterator[Reply]:
        async with AsyncExitStack() as opened:
            first = self._transport.open(request) if sent is None else sent
            try:
                reply = await self._reply(opened, first, request, rules, context)
            except (UpstreamUnreachable, UpstreamInterrupted) as error:
                raise WorkerGone(
                    "The worker of this model has just ended and is being started again.",
                    retry_after_s=_RESTART_S,
                ) from error
            yield reply

    async def _reply(
        self,
        opened: AsyncExitStack,
        first: Opening,
        request: OutboundRequest,
        rules: StreamRules | None,
        context: RequestContext,
    ) -> Reply:
        """Return the worker's reply, which `opened` closes; on a new connection if a kept one was closed.

        Raises:
            ApiError: there is none, or it is an error.
        """
        try:
            reply = await opened.enter_async_context(exchange_opened(first, rules))
        except StaleConnection:
            context.notes["attempts"] = 2
            reply = await opened.enter_async_context(exchange(self._transport, request, rules))
            reply.headers.append(_SECOND_ATTEMPT)
        if reply.status >= 400:
            await _raise_for(reply)
        return reply


async def _raise_for(reply: Reply) -> None:
    """Raise the engine's error, in the one shape; a refused credential is no business of the client's."""
    body = await reply.whole()
    raise upstream_error(status_for_client(reply.status), body, reply.headers)


class Head(NamedTuple):
    """What a request's head says of a call."""

    path: str
    headers: tuple[tuple[str, str], ...]


class BegunCall:
    """A plain call that has its slot; `give_back` ends that, once."""

    __slots__ = ("_intake", "_place", "context", "path", "request")

    def __init__(
        self,
        intake: Intake,
        context: RequestContext,
        path: str,
        place: Place,
        request: OutboundRequest,
    ) -> None:
        self._intake = intake
        self.path = path
        self._place: Place | None = place
        self.context = context
        self.request = request

    def give_back(self) -> None:
        """Give the slot to the next who waits."""
        place, self._place = self._place, None
        if place is not None:
            try:
                place.__exit__(None, None, None)
            finally:
                self._intake.end()


class InferenceRoutes(InferenceFront):
    """Sends each request to the worker of its model; `/infer` is a chat in another shape."""

    def __init__(
        self,
        rest: ASGIApp,
        *,
        proxy: Proxy,
        access: AgentAccess,
        intake: Intake,
        max_body_bytes: int,
        keep_alive_s: float,
    ) -> None:
        super().__init__(rest, keep_alive_s=keep_alive_s, further=(_INFER,))
        self._proxy = proxy
        self._access = access
        self._intake = intake
        self.max_body_bytes = max_body_bytes
        self.passed = self.paths.keys() - {_INFER}

    def head_of(self, scope: Scope) -> Head:
        """Return what the head of a POST request to one of `passed` says.

        Raises:
            ApiError: the request is refused.
        """
        self._access.require(scope, Need.DATA)
        wishes_of(scope)  # who finds a slot has nothing to wish for, but a wish may be refused
        return Head(self.paths[scope["path"]], pass_upstream(scope["headers"]))

    def begin_now(self, head: Head, context: RequestContext, body: bytes) -> BegunCall | None:
        """Return a plain call with its slot, of which nothing is sent; None if it is none, or would have to wait.

        Raises:
            ApiError: it is refused; nothing was taken.
        """
        values = decode_object(body)
        if wants_stream(values) and head.path in STREAM_RULES:
            return None
        self.set_id_header(head.path, context)
        model = self._proxy.resolve(model_name(values), head.path)
        self._intake.begin()
        try:
            found = self._proxy.begin_now(model, head.path, values, context, head.headers)
        except BaseException:
            self._intake.end()
            raise
        if found is None:
            self._intake.end()
            return None
        return BegunCall(self._intake, context, head.path, *found)

    async def _go_on(self, scope: Scope, receive: Receive, send: Send, handed: Any) -> None:
        """Serve a call that was begun without a task."""
        begun: BegunCall = handed.begun
        try:
            if handed.defect is not None:
                raise handed.defect
            async with (
                while_connected(scope, receive) as stop_watching,
                self._proxy.resume(begun, handed.exchange) as reply,
            ):
                failure = await relay(reply, send)
                stop_watching()
                begun.context.note_error(failure)
        finally:
            begun.give_back()

    async def _serve(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        handed = scope.pop(BEGUN, None)
        if handed is not None:
            await self._go_on(scope, receive, send, handed)
            return
        self._access.require(scope, Need.DATA)
        with self._intake.work():
            body = await read_body(scope, receive, limit=self.max_body_bytes)
            async with while_connected(scope, receive) as stop_watching:
                if path == _INFER:
                    await self._infer(scope, body, send, stop_watching)
                else:
                    await self._pass(scope, path, body, send, stop_watching)

    async def _pass(self, scope: Scope, path: str, body: bytes, send: Send, answered: Hook) -> None:
        values = decode_object(body)
        stream = wants_stream(values) and path in STREAM_RULES
        model = self._proxy.resolve(model_name(values), path)
        call = self._proxy.call(
            model,
            path,
            values,
            stream=stream,
            context=request_context(scope),
            wishes=wishes_of(scope),
            headers=pass_upstream(scope["headers"]),
        )
        async with self._waiting(scope, send, path, is_stream=stream) as waiting, call as reply:
            await waiting.stop()
            failure = await relay(reply, send, has_begun=waiting.has_begun)
            answered()
            request_context(scope).note_error(failure)

    async def _infer(self, scope: Scope, body: bytes, send: Send, answered: Hook) -> None:
        infer = InferCall.parse(body)
        model = self._proxy.resolve(infer.model, _CHAT)
        call = self._proxy.call(
            model,
            _CHAT,
            infer.chat_values(),
            stream=infer.stream,
            context=request_context(scope),
            wishes=wishes_of(scope),
        )
        waits = self._waiting(scope, send, _CHAT, is_stream=infer.stream)
        async with waits as waiting, call as reply:
            await waiting.stop()
            failure = await infer_relay(reply, model, send, has_begun=waiting.has_begun)
            answered()
            request_context(scope).note_error(failure)
