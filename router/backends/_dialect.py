"""What is true of OpenAI's dialect whoever speaks it: a provider, an agent, an llm-d cluster."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final

from router.domain import Call, Deployment, Endpoint
from shared.http.errors import (
    ApiError,
    UpstreamCredentialRefused,
    UpstreamFailed,
    UpstreamUnpaid,
    UpstreamUnreachable,
)
from shared.http.exchange import Reply
from shared.http.streams import STREAM_RULES, ChatRules, StreamRules
from shared.http.transport import OutboundRequest, Timeouts
from shared.http.upstream_errors import OPERATORS_BUSINESS
from shared.http.wire import encode_object, with_usage

Headers = tuple[tuple[str, str], ...]

_WITHOUT_USAGE: Final = ChatRules(hides_usage=True)
_USAGE_ON_DEMAND: Final = frozenset({"/chat/completions", "/completions"})
_USER_AGENT: Final = ("user-agent", "intelligent-inference-router")
_JSON: Final = ("content-type", "application/json")
_ACCEPT: Final = {True: ("accept", "text/event-stream"), False: ("accept", "application/json")}
_PROBE: Final = Timeouts(connect_s=2.0, first_byte_s=5.0, idle_s=5.0, total_s=10.0)
_METRICS: Final = Timeouts(connect_s=1.0, first_byte_s=1.0, idle_s=1.0, total_s=2.0)


def models_request(endpoint: Endpoint) -> OutboundRequest:
    """Return what asks an endpoint for its models: the cheapest question of the dialect."""
    headers = [_USER_AGENT, _ACCEPT[False], *_credentials(endpoint, "/models")]
    return OutboundRequest(
        method="GET", url=f"{endpoint.base_url}/models", headers=headers, timeouts=_PROBE
    )


def metrics_request(url: str) -> OutboundRequest:
    """Return what asks for Prometheus' text; no credential goes there."""
    headers = [_USER_AGENT, ("accept", "text/plain")]
    return OutboundRequest(method="GET", url=url, headers=headers, timeouts=_METRICS)


def outbound(
    deployment: Deployment,
    call: Call,
    body: Mapping[str, object],
    further: Iterable[tuple[str, str]],
) -> OutboundRequest:
    """Return the call as it goes to its endpoint, with `further` headers."""
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
            *further,
            *_credentials(endpoint, facts.path),
        ),
        body=encode_object({**body, "model": deployment.upstream_name}),
        timeouts=deployment.stream_timeouts if facts.stream else deployment.timeouts,
    )


def streaming(call: Call) -> tuple[Mapping[str, object], StreamRules | None]:
    """Return the body and what its stream may hold: the ledger wants usage, the client may not."""
    path = call.facts.path
    if call.facts.stream and path in _USAGE_ON_DEMAND:
        options = with_usage(call.body)
        if options is not None:
            return {**call.body, "stream_options": options}, _WITHOUT_USAGE
    return call.body, STREAM_RULES.get(path)


class Sending(AbstractAsyncContextManager[Reply]):
    """One exchange, entered only with an answer that the client may have."""

    __slots__ = ("_exchange", "call", "deployment")

    def __init__(
        self, exchanged: AbstractAsyncContextManager[Reply], deployment: Deployment, call: Call
    ) -> None:
        self._exchange = exchanged
        self.deployment = deployment
        self.call = call

    async def __aenter__(self) -> Reply:
        try:
            reply = await self._exchange.__aenter__()
        except UpstreamUnreachable as error:
            raise self.unreachable(error) from error
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

    def unreachable(self, error: UpstreamUnreachable) -> ApiError:
        """Return what it means that the endpoint takes no connection."""
        return error

    @abstractmethod
    async def refused(self, reply: Reply) -> ApiError:
        """Return what the endpoint's error answer means; whether another one may do better stands in it."""

    async def _check(self, reply: Reply) -> None:
        facts = self.call.facts
        if reply.status >= 400:
            _check_account(reply, self.deployment.endpoint)
            raise await self.refused(reply)
        if facts.stream and not reply.is_stream and facts.path in STREAM_RULES:
            raise UpstreamFailed("The upstream was asked for a stream and did not send one.")
        if reply.is_stream and not facts.stream:
            raise UpstreamFailed("The upstream sent a stream that it was not asked for.")


def _check_account(reply: Reply, endpoint: Endpoint) -> None:
    """Raise for what is between the endpoint and the operator, which is none of the client's business."""
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


def _credentials(endpoint: Endpoint, path: str) -> Headers:
    if endpoint.credential is None:
        return ()
    bearer = ("authorization", f"Bearer {endpoint.credential}")
    if path.startswith("/messages"):  # Anthropic's API takes its keys under this name only
        return bearer, ("x-api-key", endpoint.credential)
    return (bearer,)
