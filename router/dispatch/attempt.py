"""One try of a call on one endpoint: what it holds, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from router.dispatch.admission import Place
from router.dispatch.faults import fault_of, rest_of
from router.dispatch.meter import Meter
from router.domain import Call, Endpoint, Outcome
from router.errors import AgentLost
from router.fleet.breaker import Fault
from router.fleet.deployments import agent_name
from router.fleet.registry import Fleet
from router.ports import Backend, PlainBackend
from shared.http.cutoff import Cutoff
from shared.http.errors import ApiError
from shared.http.exchange import Reply
from shared.http.transport import InboundResponse
from shared.kit.clock import Clock

Opening = AbstractAsyncContextManager[InboundResponse]
Settle = Callable[[Call, Outcome], None]


class Attempt:
    """Holds a place, the count of what is in flight, and the upstream, from `open` to `__aexit__`.

    However it ends, everything is given back once, and one outcome is settled.
    """

    __slots__ = (
        "_clock",
        "_fleet",
        "_is_entered",
        "_meter",
        "_number",
        "_sending",
        "_sent",
        "_settle",
        "call",
        "limit",
        "place",
        "reply",
    )

    def __init__(
        self,
        call: Call,
        place: Place,
        number: int,
        *,
        fleet: Fleet,
        clock: Clock,
        limit: Cutoff,
        settle: Settle,
    ) -> None:
        """Take a place; nothing is sent before `open`.

        Args:
            call: what is sent.
            place: where to; freed at the end.
            number: which attempt of the call this is, from 1.
            fleet: is told what is in flight, and whom a failure speaks against.
            clock: a monotonic one.
            limit: what cuts the attempt when all attempts together take too long.
            settle: takes the outcome.
        """
        self.call = call
        self.place = place
        self._number = number
        self._fleet = fleet
        self._clock = clock
        self.limit = limit
        self._settle = settle
        self._meter = Meter(clock)
        self._is_entered = False
        self._sent: tuple[PlainBackend, Opening] | None = None
        self._sending: AbstractAsyncContextManager[Reply] | None = None
        self.reply: Reply

    @property
    def sent_at(self) -> float:
        """Return when it began, on the service's clock."""
        return self._meter.started

    async def open(self, backend_of: Callable[[str], Backend]) -> None:
        """Send the call and wait for the reply.

        Raises:
            ApiError: there is none; the attempt has ended.
        """
        deployment = self.place.ranked.candidate.deployment
        self.enter()
        try:
            if self._sent is not None:
                plain, opening = self._sent
                self._sending = plain.resume(opening, deployment, self.call)
            else:
                backend = backend_of(deployment.endpoint.backend)
                self._sending = backend.send(deployment, self.call)
            self.reply = await (
                self._reply_of_agent(self._sending, deployment.endpoint)
                if deployment.endpoint.is_agent
                else self._sending.__aenter__()
            )
        except BaseException as error:
            self._end(error)
            raise
        self._meter.take(self.reply)
        self._fleet.answered(deployment)

    def enter(self) -> None:
        """Count as under way; what is ranked from now on knows of it."""
        if not self._is_entered:
            self._is_entered = True
            self._fleet.enter(self.place.ranked.candidate.deployment)

    def sent(self, backend: PlainBackend, opening: Opening) -> None:
        """Note that the call was sent already: it ends with `end`, or goes on with `open`."""
        self._sent = backend, opening

    def end(self, reply: Reply | None, error: BaseException | None = None) -> None:
        """End an attempt that was never opened: with its whole reply, or what came instead."""
        if reply is not None:
            self._meter.take(reply)
            self._fleet.answered(self.place.ranked.candidate.deployment)
        self._end(error)

    async def _reply_of_agent(
        self, sending: AbstractAsyncContextManager[Reply], endpoint: Endpoint
    ) -> Reply:
        """Wait for the reply for as long as the agent lives: one that froze takes connections."""
        with self._fleet.waits.on((endpoint,)):
            return await sending.__aenter__()
        raise AgentLost("The agent that has this model was lost while it had the request.")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the upstream, whatever phase it is in, and settle."""
        assert self._sending is not None  # noqa: S101 - it is open
        try:
            await self._sending.__aexit__(kind, error, trace)
        finally:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Give back what it held, and tell everybody what became of it."""
        fault = self._judged(error)
        deployment = self.place.ranked.candidate.deployment
        endpoint = deployment.endpoint.id
        self.place.free(was_served=self._meter.error is None)
        self._fleet.leave(deployment)
        self._fleet.breakers.end(endpoint, deployment.upstream_name, fault)
        if fault is Fault.ENDPOINT and deployment.endpoint.is_agent:
            self._fleet.membership.doubt(agent_name(endpoint))
        cause, self._meter.cause = self._meter.cause, None  # it leads back here, by its trace
        rest = None if cause is None else rest_of(cause)
        if rest is not None:
            seconds, is_binding = rest
            self._fleet.rests.ask(
                endpoint, deployment.upstream_name, seconds, is_binding=is_binding
            )
        self._settle(self.call, self._meter.outcome(endpoint, self._number))

    def _judged(self, error: BaseException | None) -> Fault | None:
        """Note what ended it, and return whom that speaks against."""
        failure = error if isinstance(error, ApiError) else self._meter.failure
        if failure is not None:
            self._meter.fail(failure)
            return fault_of(failure)
        if error is None:
            return Fault.NONE
        if not isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self._meter.error = "internal_error"  # a defect of ours tells nothing of others
            return None
        if self.limit.is_cut:
            self._meter.error = "deadline_exceeded"
            return Fault.MODEL
        self._meter.error = "abandoned"
        return Fault.NONE if self._meter.status else None
