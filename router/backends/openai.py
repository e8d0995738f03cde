"""The OpenAI dialect: vendors, agents and engines that speak it. The body passes through.

Anthropic's Messages and OpenAI's Responses pass likewise, to endpoints that say they speak them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

from router.backends import BACKENDS
from router.backends._dialect import Headers, Sending, models_request, outbound, streaming
from router.domain import Call, Deployment, Endpoint, Probed
from router.errors import AgentUnavailable
from router.ports import TenantOf
from shared.http.errors import ApiError, UpstreamFailed, UpstreamUnreachable
from shared.http.exchange import Reply, exchange, exchange_opened
from shared.http.streams import STREAM_RULES
from shared.http.transport import InboundResponse, OutboundRequest, Transport
from shared.http.upstream_errors import upstream_error

# An agent's comments would send its 200 before it knows whether there is an answer; ours do not.
_NO_COMMENTS: Headers = (("x-iir-keep-alive", "off"),)


@BACKENDS.register("openai")
class OpenAIBackend:
    """Sends the request as it came, under the endpoint's name for the model."""

    def __init__(self, transport: Transport, _tenant_of: TenantOf) -> None:
        self._transport = transport

    def send(self, deployment: Deployment, call: Call) -> AbstractAsyncContextManager[Reply]:
        """See `Backend.send`."""
        body, rules = streaming(call)
        request = self._request(deployment, call, body)
        return _Sending(exchange(self._transport, request, rules), deployment, call)

    def plain_request(self, deployment: Deployment, call: Call) -> OutboundRequest:
        """See `PlainBackend.plain_request`."""
        return self._request(deployment, call, call.body)

    def resume(
        self,
        opening: AbstractAsyncContextManager[InboundResponse],
        deployment: Deployment,
        call: Call,
    ) -> AbstractAsyncContextManager[Reply]:
        """See `PlainBackend.resume`."""
        rules = STREAM_RULES.get(call.facts.path)
        return _Sending(exchange_opened(opening, rules), deployment, call)

    def _request(
        self, deployment: Deployment, call: Call, body: Mapping[str, object]
    ) -> OutboundRequest:
        further = _to_agent(call) if deployment.endpoint.is_agent else ()
        return outbound(deployment, call, body, further)

    async def probe(self, endpoint: Endpoint) -> Probed:
        """See `Backend.probe`; a refused credential, or a route that is not there, is an answer."""
        async with self._transport.open(models_request(endpoint)) as response:
            while await response.read():
                pass
            if response.status >= 500:
                raise UpstreamFailed(f"The endpoint answered a probe with {response.status}.")
            return Probed(is_accepted=response.status < 300)


def _to_agent(call: Call) -> Headers:
    if call.wait_s is None:
        return _NO_COMMENTS
    return (*_NO_COMMENTS, ("prefer", f"wait={call.wait_s:.0f}"))


class _Sending(Sending):
    __slots__ = ()

    def unreachable(self, error: UpstreamUnreachable) -> ApiError:
        """Say of an agent that can't be reached what it is: on its way back, as a rule."""
        if not self.deployment.endpoint.is_agent:
            return error
        return AgentUnavailable(
            "The agent that has this model does not answer. It comes back by itself once it runs "
            "again (iir-agent serve; in a checkout: make dev).",
            retry_after_s=3,
        )

    async def refused(self, reply: Reply) -> ApiError:
        """Return the endpoint's error."""
        error = upstream_error(reply.status, await reply.whole(), reply.headers)
        if self.deployment.endpoint.is_agent and reply.error_origin is not None:
            error.origin = reply.error_origin
        return error
