"""An llm-d cluster behind its gateway: OpenAI's dialect, with llm-d's own headers, errors and probes.

Names and meanings are those of llm-d-router v0.10 (https://github.com/llm-d/llm-d-router): Envoy asks an
endpoint picker for each request, so either of them may answer in place of the model server.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from itertools import cycle
from typing import Final

from msgspec.structs import replace

from router.backends import BACKENDS
from router.backends._dialect import (
    Headers,
    Sending,
    metrics_request,
    models_request,
    outbound,
    streaming,
)
from router.backends.llmd.answers import meaning_of, of_look
from router.backends.llmd.looks import Load, found_models, has_no_pods, read_bounded, told_load
from router.domain import Call, Deployment, Endpoint, Gateway, HeaderStyle, Probed
from router.ports import TenantOf
from shared.http.errors import ApiError
from shared.http.exchange import Reply, exchange
from shared.http.transport import Transport
from shared.http.upstream_errors import OPERATORS_BUSINESS

# objective, tenant, and how long the first token and each one after it may take
_CURRENT: Final = (
    "x-llm-d-inference-objective",
    "x-llm-d-inference-fairness-id",
    "x-llm-d-slo-ttft-ms",
    "x-llm-d-slo-tpot-ms",
)
_LEGACY: Final = (
    "x-gateway-inference-objective",
    "x-gateway-inference-fairness-id",
    "x-slo-ttft-ms",
    "x-slo-tpot-ms",
)
_NAMES: Final[Mapping[HeaderStyle, tuple[str, ...]]] = {
    "current": _CURRENT,
    "legacy": _LEGACY,
    "both": (*_CURRENT, *_LEGACY),
}
_GATEWAY: Final = Gateway()


@BACKENDS.register("llmd")
class LlmdBackend:
    """Sends the request as it came, with what llm-d wants to know of it."""

    def __init__(self, transport: Transport, tenant_of: TenantOf) -> None:
        self._transport = transport
        self._tenant_of = tenant_of

    def send(self, deployment: Deployment, call: Call) -> AbstractAsyncContextManager[Reply]:
        """See `Backend.send`."""
        body, rules = streaming(call)
        request = outbound(deployment, call, body, self._headers(deployment, call))
        return _Sending(exchange(self._transport, request, rules), deployment, call)

    async def probe(self, endpoint: Endpoint) -> Probed:
        """See `Backend.probe`. A cluster without pods is one that answers, and is cold."""
        found = await self._models(endpoint)
        load = await self._load(endpoint)
        return replace(found, is_cold=found.is_cold or load.is_cold, queued=load.queued)

    async def _models(self, endpoint: Endpoint) -> Probed:
        async with self._transport.open(models_request(endpoint)) as response:
            body = await read_bounded(response)
            if has_no_pods(response.status, response.headers, body):
                return Probed(is_cold=True)
            if response.status >= 500:
                raise of_look(response.status, body, has_pools=has_pools(endpoint))
            if response.status >= 300:
                # the credential is not taken; or there are several pools, of which none is meant
                return Probed(is_accepted=False, is_refused=response.status in OPERATORS_BUSINESS)
            return Probed(models=found_models(body))

    async def _load(self, endpoint: Endpoint) -> Load:
        """Return what the endpoint picker tells of its queues, if it does."""
        url = endpoint.gateway and endpoint.gateway.metrics_url
        if not url:
            return Load()
        try:
            async with self._transport.open(metrics_request(url)) as response:
                body = await read_bounded(response)
        except ApiError:
            return Load()
        return told_load(body) if response.status == 200 else Load()

    def _headers(self, deployment: Deployment, call: Call) -> Headers:
        """Return llm-d's headers; those that the client sent were left behind at the door.

        No trace is begun here: whether to sample one is the client's to say, by its `traceparent`.
        """
        gateway = deployment.endpoint.gateway or _GATEWAY
        slo = deployment.slo
        values = (
            deployment.objective,
            self._tenant_of(call.facts.key_id),
            None if slo.ttft_ms is None else str(slo.ttft_ms),
            None if slo.tpot_ms is None else str(slo.tpot_ms),
        )
        names = _NAMES[gateway.header_style]
        found: Headers = tuple(
            (name, value)
            for name, value in zip(names, cycle(values), strict=False)
            if value is not None
        )
        header = gateway.model_header
        if header:
            name = deployment.base_model or deployment.upstream_name
            if name.isascii():  # no route of Kubernetes matches on anything else
                found = (*found, (header, name))
        return found


def has_pools(endpoint: Endpoint) -> bool:
    """Tell whether there are several pools behind one gateway: then it is told the model by a header."""
    return endpoint.gateway is not None and endpoint.gateway.model_header is not None


class _Sending(Sending):
    __slots__ = ()

    async def refused(self, reply: Reply) -> ApiError:
        """Return what gateway, picker or model server mean by their error."""
        return meaning_of(
            reply,
            await reply.whole(),
            self.call.facts.request_id,
            has_pools=has_pools(self.deployment.endpoint),
        )
