"""Choose an endpoint, call it, try the next one until the first byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from router.dispatch.meter import Meter
from router.domain import Call, Endpoint, ModelName, Ranked
from router.errors import NoEndpoint
from router.fleet.registry import Fleet
from router.ports import Backend, OutcomeSink, RoutingPolicy
from shared.http.errors import ApiError
from shared.http.exchange import Reply
from shared.kit.clock import Clock


@dataclass(frozen=True, slots=True)
class Dispatched:
    """A reply with the route it took."""

    reply: Reply
    model: ModelName
    ranked: Ranked
    attempts: int
    sent_at: float


class Dispatcher:
    """Owns a call from admission to its last byte; raises only `ApiError`.

    Nothing is retried once the caller was handed a reply: its first byte may be with the client.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        policy: RoutingPolicy,
        backends: Mapping[str, Backend],
        sinks: Sequence[OutcomeSink],
        clock: Clock,
        max_attempts: int = 2,
    ) -> None:
        self._fleet = fleet
        self._policy = policy
        self._backends = backends
        self._sinks = sinks
        self._clock = clock
        self._max_attempts = max_attempts

    @asynccontextmanager
    async def dispatch(self, call: Call) -> AsyncIterator[Dispatched]:
        """Enter with the reply of the first endpoint that gives one.

        Raises:
            ApiError: no candidate, or the last attempt's error, with `x-iir-attempts` on it.
        """
        resolution = self._fleet.resolve(call.facts.model, call.facts.zone)
        ranking = self._policy.rank(call.facts, resolution.candidates)[: self._max_attempts]
        if not ranking:
            raise NoEndpoint("No endpoint of this model is fit for the request now.")
        for number, ranked in enumerate(ranking, 1):
            committed = False
            sent_at = self._clock()
            try:
                async with self._attempt(call, ranked, number) as reply:
                    committed = True
                    yield Dispatched(reply, resolution.model, ranked, number, sent_at)
                    return
            except ApiError as error:
                if committed:
                    raise
                if not error.is_retryable or number == len(ranking):
                    error.headers += _route_headers(ranked, resolution.model, number)
                    raise

    @asynccontextmanager
    async def _attempt(self, call: Call, ranked: Ranked, number: int) -> AsyncIterator[Reply]:
        deployment = ranked.candidate.deployment
        endpoint = deployment.endpoint
        meter = Meter(self._clock)
        with self._fleet.track(endpoint.id):
            try:
                async with self._backend(endpoint).send(deployment, call) as reply:
                    meter.status = reply.status
                    reply.chunks = meter.watch(reply.chunks)
                    yield reply
            except ApiError as error:
                meter.error = error.code
                meter.status = meter.status or error.status
                raise
            except (asyncio.CancelledError, GeneratorExit):
                meter.error = "abandoned"
                raise
            finally:
                outcome = meter.outcome(endpoint.id, number)
                self._policy.observe(call.facts, outcome)
                for sink in self._sinks:
                    sink.record(call.facts, outcome)

    def _backend(self, endpoint: Endpoint) -> Backend:
        found = self._backends.get(endpoint.backend)
        if found is None:  # its row is a newer version's, or was written by hand
            raise NoEndpoint(f"Nothing here speaks the dialect {endpoint.backend!r}.")
        return found


def _route_headers(ranked: Ranked, model: ModelName, attempts: int) -> tuple[tuple[str, str], ...]:
    endpoint = ranked.candidate.deployment.endpoint
    return (
        ("x-iir-model", header_safe(model)),
        ("x-iir-endpoint", header_safe(endpoint.id)),
        ("x-iir-zone", endpoint.zone.value),
        ("x-iir-attempts", str(attempts)),
    )


def header_safe(text: str) -> str:
    """Return `text` as a header value: printable ASCII, everything else as `?`."""
    return "".join(char if " " <= char <= "~" else "?" for char in text)
