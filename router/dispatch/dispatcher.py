"""Choose an endpoint, call it, try the next one until the first byte."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import anyio

from router.dispatch.faults import fault_of
from router.dispatch.meter import Meter
from router.domain import Call, Endpoint, ModelName, Outcome, Ranked
from router.errors import DeadlineExceeded, NoEndpoint
from router.fleet.breaker import Fault
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
        deadline_s: float = 600.0,
    ) -> None:
        self._fleet = fleet
        self._policy = policy
        self._backends = backends
        self._sinks = sinks
        self._clock = clock
        self._max_attempts = max_attempts
        self._deadline_s = deadline_s

    @asynccontextmanager
    async def dispatch(self, call: Call) -> AsyncIterator[Dispatched]:
        """Enter with the reply of the first endpoint that gives one.

        Raises:
            ApiError: no candidate, or the last attempt's error, with `x-iir-attempts` on it.
        """
        started = self._clock()
        resolution = self._fleet.resolve(call.facts.model, call.facts.zone)
        ranking = self._policy.rank(call.facts, resolution.candidates)[: self._max_attempts]
        if not ranking:
            raise NoEndpoint("No endpoint of this model is fit for the request now.")
        tried: list[Ranked] = []
        # one deadline for all attempts; a stream that has begun may take as long as it takes
        with anyio.move_on_after(self._deadline_s) as limit:
            async with self._first_reply(call, resolution.model, ranking, tried, limit) as found:
                yield found
        if limit.cancelled_caught:
            waited_s = self._clock() - started
            error = DeadlineExceeded(
                f"No endpoint answered within {waited_s:.0f} s, the time for a first byte."
            )
            raise _explained(error, tried[-1], resolution.model, len(tried))

    @asynccontextmanager
    async def _first_reply(
        self,
        call: Call,
        model: ModelName,
        ranking: Sequence[Ranked],
        tried: list[Ranked],
        limit: anyio.CancelScope,
    ) -> AsyncIterator[Dispatched]:
        """Try one after the other, noting each in `tried`; the first reply lifts the limit."""
        for number, choice in enumerate(ranking, 1):
            ranked = choice if number == 1 else replace(choice, reason="failover")
            tried.append(ranked)
            sent_at = self._clock()
            try:
                async with self._attempt(call, ranked, number, limit) as reply:
                    limit.deadline = math.inf
                    yield Dispatched(reply, model, ranked, number, sent_at)
                    return
            except ApiError as error:
                if limit.deadline == math.inf:
                    raise
                if not error.is_retryable or number == len(ranking):
                    raise _explained(error, ranked, model, number) from error

    @asynccontextmanager
    async def _attempt(
        self, call: Call, ranked: Ranked, number: int, limit: anyio.CancelScope
    ) -> AsyncIterator[Reply]:
        deployment = ranked.candidate.deployment
        endpoint = deployment.endpoint
        meter = Meter(self._clock)
        fault: Fault | None = Fault.NONE
        with self._fleet.track(deployment):
            try:
                async with self._backend(endpoint).send(deployment, call) as reply:
                    meter.take(reply)
                    yield reply
                fault = fault_of(meter.failure)
            except ApiError as error:
                meter.fail(error)
                fault = fault_of(error)
                raise
            except (asyncio.CancelledError, GeneratorExit):
                meter.error = "deadline_exceeded" if limit.cancel_called else "abandoned"
                fault = Fault.MODEL if limit.cancel_called else Fault.NONE if meter.status else None
                raise
            finally:
                self._fleet.breakers.end(endpoint.id, deployment.upstream_name, fault)
                self._settle(call, meter.outcome(endpoint.id, number))

    def _backend(self, endpoint: Endpoint) -> Backend:
        found = self._backends.get(endpoint.backend)
        if found is None:  # its row is a newer version's, or was written by hand
            raise NoEndpoint(f"Nothing here speaks the dialect {endpoint.backend!r}.")
        return found

    def _settle(self, call: Call, outcome: Outcome) -> None:
        self._policy.observe(call.facts, outcome)
        for sink in self._sinks:
            sink.record(call.facts, outcome)


def _explained(error: ApiError, ranked: Ranked, model: ModelName, attempts: int) -> ApiError:
    """Return the error with the way it took.

    After several attempts of ours the client shall not multiply them by its own.
    """
    error.headers += _route_headers(ranked, model, attempts)
    if attempts > 1 and not any(name == "x-should-retry" for name, _ in error.headers):
        error.headers += (("x-should-retry", "false"),)
    return error


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
