"""The OpenAI dialect: vendors, agents and engines that speak it. The body passes through.

Anthropic's Messages and OpenAI's Responses pass likewise, to endpoints that say they speak them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final

from router.backends import BACKENDS
from router.domain import Call, Deployment, Endpoint
from router.errors import AgentUnavailable
from shared.http.errors import (
    ApiError,
    UpstreamCredentialRefused,
    UpstreamFailed,
    UpstreamUnpaid,
    UpstreamUnreachable,
)
from shared.http.exchange import Reply, exchange
from shared.http.streams import STREAM_RULES, ChatRules, StreamRules
from shared.http.transport import OutboundRequest, Timeouts, Transport
from shared.http.upstream_errors import OPERATORS_BUSINESS, upstream_error
from shared.http.wire import encode_object, with_usage

_WITHOUT_USAGE: Final = ChatRules(hides_usage=True)
_USAGE_ON_DEMAND: Final = frozenset({"/chat/completions", "/completions"})
_USER_AGENT: Final = ("user-agent", "intelligent-inference-router")
_JSON: Final = ("content-type", "application/json")
_ACCEPT: Final = {True: ("accept", "text/event-stream"), False: ("accept", "application/json")}
# An agent's comments would send its 200 before it knows whether there is an answer; ours do not.
_NO_COMMENTS: Final = (("x-iir-keep-alive", "off"),)
_PROBE: Final = Timeouts(connect_s=2.0, first_byte_s=5.0, idle_s=5.0, total_s=10.0)


@BACKENDS.register("openai")
class OpenAIBackend:
    """Sends the request as it came, under the endpoint's name for the model."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def send(self, deployment: Deployment, call: Call) -> AbstractAsyncContextManager[Reply]:
        """See `Backend.send`."""
        body, rules = _streaming(call)
        request = self._request(deployment, call, body)
        return _Sending(exchange(self._transport, request, rules), deployment, call)

    async def probe(self, endpoint: Endpoint) -> bool:
        """See `Backend.probe`; a refused credential, or a route that is not there, is an answer."""
        headers = [_USER_AGENT, _ACCEPT[False], *_credentials(endpoint, "/models")]
        request = OutboundRequest(
            method="GET", url=f"{endpoint.base_url}/models", headers=headers, timeouts=_PROBE
        )
        async with self._transport.open(request) as response:
            while await response.read():
                pass
            if response.status >= 500:
                raise UpstreamFailed(f"The endpoint answered a probe with {response.status}.")
            return response.status < 300

    def _request(
        self, deployment: Deployment, call: Call, body: Mapping[str, object]
    ) -> OutboundRequest:
        endpoint, facts = deployment.endpoint, call.facts
        return OutboundRequest(
            method="POST",
            url=f"{endpoint.base_url}{facts.path}",
            headers=(
                _JSON,
                _ACCEPT[facts.stream],
                _USER_AGENT,
                ("x-request-id", facts.request_id),
                *call.headers,
                *(_to_agent(call) if endpoint.is_agent else ()),
                *_credentials(endpoint, facts.path),
            ),
            body=encode_object({**body, "model": deployment.upstream_name}),
            timeouts=deployment.stream_timeouts if facts.stream else deployment.timeouts,
        )


def _to_agent(call: Call) -> tuple[tuple[str, str], ...]:
    if call.wait_s is None:
        return _NO_COMMENTS
    return (*_NO_COMMENTS, ("prefer", f"wait={call.wait_s:.0f}"))


class _Sending(AbstractAsyncContextManager[Reply]):
    """One exchange, entered only with an answer that the client may have."""

    __slots__ = ("_call", "_deployment", "_exchange")

    def __init__(
        self, exchanged: AbstractAsyncContextManager[Reply], deployment: Deployment, call: Call
    ) -> None:
        self._exchange = exchanged
        self._deployment = deployment
        self._call = call

    async def __aenter__(self) -> Reply:
        try:
            reply = await self._exchange.__aenter__()
        except UpstreamUnreachable as error:
            raise _named(error, self._deployment) from error
        try:
            await self._check(reply)
        except BaseException as error:
            await self._exchange.__aexit__(type(error), error, error.__traceback__)
            raise
        return reply

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._exchange.__aexit__(kind, error, trace)

    async def _check(self, reply: Reply) -> None:
        facts = self._call.facts
        if reply.status >= 400:
            await _raise_for(reply, self._deployment)
        if facts.stream and not reply.is_stream and facts.path in STREAM_RULES:
            raise UpstreamFailed("The upstream was asked for a stream and did not send one.")
        if reply.is_stream and not facts.stream:
            raise UpstreamFailed("The upstream sent a stream that it was not asked for.")


def _credentials(endpoint: Endpoint, path: str) -> tuple[tuple[str, str], ...]:
    if endpoint.credential is None:
        return ()
    bearer = ("authorization", f"Bearer {endpoint.credential}")
    if path.startswith("/messages"):  # Anthropic's API takes its keys under this name only
        return bearer, ("x-api-key", endpoint.credential)
    return (bearer,)


def _streaming(call: Call) -> tuple[Mapping[str, object], StreamRules | None]:
    """Return the body and what its stream may hold: the ledger wants usage, the client may not."""
    path = call.facts.path
    if call.facts.stream and path in _USAGE_ON_DEMAND:
        options = with_usage(call.body)
        if options is not None:
            return {**call.body, "stream_options": options}, _WITHOUT_USAGE
    return call.body, STREAM_RULES.get(path)


def _named(error: UpstreamUnreachable, deployment: Deployment) -> ApiError:
    """Say of an agent that can't be reached what it is: on its way back, as a rule."""
    if not deployment.endpoint.is_agent:
        return error
    return AgentUnavailable(
        "The agent that has this model does not answer. It comes back by itself once it runs "
        "again (iir-agent serve; in a checkout: make dev).",
        retry_after_s=3,
    )


async def _raise_for(reply: Reply, deployment: Deployment) -> None:
    """Raise the endpoint's error; whether another one may do better stands in it."""
    endpoint = deployment.endpoint
    if reply.status == 402:
        raise UpstreamUnpaid(
            f"The endpoint {endpoint.id!r} wants to be paid. The operator has to look at the account "
            "there."
        )
    if reply.status in OPERATORS_BUSINESS:
        raise UpstreamCredentialRefused(
            f"The endpoint {endpoint.id!r} did not accept the router's credential. Its operator has "
            "to check it: iir doctor."
        )
    error = upstream_error(reply.status, await reply.whole(), reply.headers)
    if endpoint.is_agent and reply.error_origin is not None:
        error.origin = reply.error_origin
    raise error
