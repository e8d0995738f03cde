"""The OpenAI dialect: vendors, agents and engines that speak it. The body passes through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from router.backends import BACKENDS
from router.domain import Call, Deployment
from router.errors import AgentUnavailable
from shared.http.errors import UpstreamCredentialRefused, UpstreamFailed, UpstreamUnreachable
from shared.http.exchange import Reply, exchange
from shared.http.streams import ChatRules
from shared.http.transport import OutboundRequest, Timeouts, Transport
from shared.http.upstream_errors import upstream_error
from shared.http.wire import encode_object, with_usage

# An SDK that asked for a stream takes anything else for a stream without events.
_STREAMED = frozenset({"/chat/completions", "/completions"})


@BACKENDS.register("openai")
class OpenAIBackend:
    """Sends the request as it came, under the endpoint's name for the model."""

    def __init__(self, transport: Transport, timeouts: Timeouts) -> None:
        self._transport = transport
        self._timeouts = timeouts

    @asynccontextmanager
    async def send(self, deployment: Deployment, call: Call) -> AsyncIterator[Reply]:
        """See `Backend.send`."""
        body, rules = _streaming(call)
        request = self._request(deployment, call, body)
        with _named(deployment):
            async with exchange(self._transport, request, rules) as reply:
                if reply.status >= 400:
                    await _raise_for(reply, deployment)
                elif call.facts.stream and not reply.is_stream and call.facts.path in _STREAMED:
                    raise UpstreamFailed(
                        "The upstream was asked for a stream and did not send one."
                    )
                yield reply

    def _request(
        self, deployment: Deployment, call: Call, body: Mapping[str, object]
    ) -> OutboundRequest:
        endpoint = deployment.endpoint
        headers = [
            ("content-type", "application/json"),
            ("accept", "text/event-stream" if call.facts.stream else "application/json"),
            ("user-agent", "intelligent-inference-router"),
            ("x-request-id", call.facts.request_id),
            *call.headers,
        ]
        if endpoint.credential is not None:
            headers.append(("authorization", f"Bearer {endpoint.credential}"))
        return OutboundRequest(
            method="POST",
            url=f"{endpoint.base_url}{call.facts.path}",
            headers=headers,
            body=encode_object({**body, "model": deployment.upstream_name}),
            timeouts=self._timeouts,
        )


def _streaming(call: Call) -> tuple[Mapping[str, object], ChatRules]:
    """Return the body and what its stream may hold: the ledger wants usage, the client may not."""
    if not call.facts.stream or call.facts.path not in _STREAMED:
        return call.body, ChatRules()
    options = with_usage(call.body)
    if options is None:
        return call.body, ChatRules()
    return {**call.body, "stream_options": options}, ChatRules(hides_usage=True)


@contextmanager
def _named(deployment: Deployment) -> Iterator[None]:
    """Say of an agent that can't be reached what it is: on its way back, as a rule."""
    try:
        yield
    except UpstreamUnreachable as error:
        if not deployment.endpoint.is_agent:
            raise
        raise AgentUnavailable(
            "The agent that has this model does not answer. It comes back by itself once it runs "
            "again (make dev, or iir-agent serve).",
            retry_after_s=3,
        ) from error


async def _raise_for(reply: Reply, deployment: Deployment) -> None:
    """Raise the endpoint's error; whether another one may do better stands in it."""
    endpoint = deployment.endpoint
    if reply.status in {401, 403}:
        raise UpstreamCredentialRefused(
            f"The endpoint {endpoint.id!r} did not accept the router's credential. Its operator has "
            "to check it: iir doctor."
        )
    body = b"".join([chunk async for chunk in reply.chunks])
    error = upstream_error(reply.status, body, reply.headers)
    if endpoint.is_agent and reply.error_origin is not None:
        error.origin = reply.error_origin
    raise error
