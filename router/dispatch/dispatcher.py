"""Choose an endpoint, call it, try the next one until the first byte."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

import msgspec

from router.dispatch.admission import Admission, Place
from router.dispatch.attempt import Attempt
from router.dispatch.retry import RetryBudget
from router.dispatch.trip import Begun, Trip, call_for, explained
from router.domain import Call, EndpointId, ModelName, Outcome, Ranked
from router.errors import AgentLost, CircuitOpen, DeadlineExceeded, NoEndpoint, PodUnreachable
from router.fleet.registry import Fleet
from router.ports import Backend, OutcomeSink, PlainBackend, RoutingPolicy
from shared.http.cutoff import Cutoff, TimeLimit
from shared.http.errors import ApiError, StaleConnection
from shared.http.exchange import Reply
from shared.kit.clock import Clock

_NOWHERE = EndpointId("")
_AGAIN = (StaleConnection, PodUnreachable)
_NO_LIMIT = Cutoff()


class Dispatched(msgspec.Struct, frozen=True):
    """A reply with the route it took. `sent_at` is on the service's clock, in seconds."""

    reply: Reply
    model: ModelName
    ranked: Ranked
    attempts: int
    sent_at: float
    queued_s: float


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
        admission: Admission | None = None,
        budget: RetryBudget | None = None,
        max_attempts: int = 2,
        deadline_s: float = 600.0,
    ) -> None:
        self._fleet = fleet
        self._policy = policy
        self._backends = backends
        self._plain = {
            name: each for name, each in backends.items() if isinstance(each, PlainBackend)
        }
        self._sinks = sinks
        self._clock = clock
        self._admission = admission or Admission(clock)
        self._budget = budget or RetryBudget()
        self._max_attempts = max_attempts
        self.deadline_s = deadline_s

    def dispatch(
        self,
        call: Call,
        notes: MutableMapping[str, object] | None = None,
        begun: Begun | None = None,
    ) -> AbstractAsyncContextManager[Dispatched]:
        """Enter with the reply of the first endpoint that gives one.

        Entering raises `ApiError`: no candidate, no place, or the last attempt's error, with
        `x-iir-attempts` on it.

        Args:
            call: what is sent.
            notes: told the model, the endpoint and the number of each attempt as it begins.
            begun: how far the call has come already.
        """
        return _Dispatch(self, call, {} if notes is None else notes, begun)

    async def start(
        self, call: Call, notes: MutableMapping[str, object], begun: Begun | None
    ) -> tuple[Attempt, Dispatched]:
        """Return the attempt that has a reply, which is open, and how it came about.

        Raises:
            ApiError: see `dispatch`.
        """
        started = self._clock() if begun is None else begun.attempt.sent_at
        trip = self._begin(call, notes, started) if begun is None else begun.trip
        left_s = self.deadline_s if begun is None else self.deadline_s - self._clock() + started
        # one deadline for queue and attempts; a stream that has begun may take as long as it takes
        with TimeLimit(left_s) as limit:
            attempt = await self._first_reply(trip, limit, started, begun)
            return attempt, Dispatched(
                attempt.reply,
                trip.model,
                attempt.place.ranked,
                trip.attempts,
                attempt.sent_at,
                trip.queued_s,
            )
        raise self._too_late(trip, started)

    async def _first_reply(
        self, trip: Trip, limit: TimeLimit, started: float, begun: Begun | None
    ) -> Attempt:
        """Try one endpoint after the other; return the first attempt with a reply, which is open.

        Raises:
            ApiError: none gave one.
        """
        attempt = None
        if begun is not None:
            attempt = begun.attempt
            attempt.limit = limit
            if begun.defect is not None:
                attempt.end(None, begun.defect)
                raise begun.defect
        while True:
            attempt = attempt or self._attempt(trip, await self._place(trip, limit, started), limit)
            try:
                await attempt.open(self._backend)
            except ApiError as error:
                self._check_retry(trip, error)
            else:
                return attempt
            attempt = None

    def _attempt(self, trip: Trip, place: Place, limit: Cutoff) -> Attempt:
        return Attempt(
            call_for(place, trip),
            place,
            trip.attempts,
            fleet=self._fleet,
            clock=self._clock,
            limit=limit,
            settle=self._settle,
        )

    def begin_now(self, call: Call, notes: MutableMapping[str, object]) -> Begun | None:
        """Return a call with its first attempt, of which nothing is sent; None: it would have to wait for a place.

        Raises:
            ApiError: nobody can serve it now; nothing of it was recorded.
        """
        trip = self._trip(call, notes)
        place = self._admission.take(trip.ranking)
        if place is None:
            return None
        try:
            self._choose(trip, place)
            attempt = self._attempt(trip, place, _NO_LIMIT)
            attempt.enter()
        except BaseException:
            place.free(was_served=False)
            raise
        self._budget.earn()
        return Begun(trip, attempt)

    def plain_backend(self, begun: Begun) -> PlainBackend | None:
        """Return what sends the call to where its first attempt goes, if that may be done outside of a task."""
        return self._plain.get(begun.attempt.place.ranked.candidate.deployment.endpoint.backend)

    def _begin(self, call: Call, notes: MutableMapping[str, object], started: float) -> Trip:
        """Find out who may serve the call.

        Raises:
            ApiError: nobody can now.
        """
        try:
            trip = self._trip(call, notes)
        except ApiError as error:
            if error.status != 404:  # names that nobody knows are no work, and have no end
                self._refuse(call, error.code, error.status, started)
            raise
        self._budget.earn()
        return trip

    def _trip(self, call: Call, notes: MutableMapping[str, object]) -> Trip:
        facts = call.facts
        resolution = self._fleet.resolve(facts.model, facts.zone, facts.path)
        ranking = list(self._policy.rank(facts, resolution.candidates))
        if not ranking:
            raise NoEndpoint("No endpoint of this model is fit for the request now.")
        notes["model"] = resolution.model
        return Trip(call, resolution.model, ranking, notes, self._max_attempts)

    async def _place(self, trip: Trip, limit: TimeLimit, started: float) -> Place:
        """Return a place on the best endpoint that is left, waiting for one if need be.

        Raises:
            ApiError: there is none, and won't be in time.
        """
        place = self._admission.take(trip.ranking)
        if place is None:
            try:
                place = await self._wait(trip)
            except ApiError as error:
                self._refuse(trip.call, error.code, error.status, started)
                raise explained(error, trip) from None
            except asyncio.CancelledError:
                reason = "deadline_exceeded" if limit.is_cut else "abandoned"
                self._refuse(trip.call, reason, 0, started)
                raise
        self._choose(trip, place)
        return place

    def _choose(self, trip: Trip, place: Place) -> None:
        """Note where the next attempt goes, and why there."""
        if trip.attempts:
            is_same = trip.last is not None and trip.last.candidate is place.ranked.candidate
            place.ranked = Ranked(place.ranked.candidate, "retry" if is_same else "failover")
        elif place.ranked is not trip.ranking[0]:
            place.ranked = Ranked(place.ranked.candidate, "overflow")
        trip.last = place.ranked
        trip.attempts += 1
        trip.notes["endpoint"] = place.ranked.candidate.deployment.endpoint.id
        trip.notes["attempts"] = trip.attempts

    async def _wait(self, trip: Trip) -> Place:
        """Wait for a place on an endpoint that still takes requests when it comes free.

        Raises:
            ApiError: none came free, or those that did have failed or asked for a pause meanwhile.
        """
        place: Place | None = None
        while place is None:
            endpoints = [each.candidate.deployment.endpoint for each in trip.ranking]
            with self._fleet.waits.on(endpoints, while_none=lambda: not self._left(trip)):
                place = await self._admission.wait(trip.ranking, trip.call.facts.key_id or "")
            if place is None:
                raise AgentLost("The agent that has this model was lost while the request waited.")
            trip.queued_s += place.waited_s
            if not self._fleet.takes(place.ranked.candidate.deployment):
                place.free(was_served=False)
                trip.ranking = self._left(trip)
                if not trip.ranking:
                    raise CircuitOpen(
                        "Every endpoint of this model failed, or asked for a pause, while the request "
                        "waited. Ask again later.",
                        retry_after_s=1,
                    )
                place = self._admission.take(trip.ranking)
        return place

    def _left(self, trip: Trip) -> list[Ranked]:
        return [each for each in trip.ranking if self._fleet.takes(each.candidate.deployment)]

    def _check_retry(self, trip: Trip, error: ApiError) -> None:
        """Return if another attempt may follow the one that failed.

        It goes to another endpoint, or to the same if the old connection was stale, or if only the pod was
        away that a cluster had picked: once, and beyond the attempts that the settings allow if they allow
        several, since if nobody is there any more another endpoint has to have its chance.

        Raises:
            ApiError: that attempt's error.
        """
        tried = trip.last.candidate if trip.last is not None else None
        left = self._left(trip)
        others = [each for each in left if each.candidate is not tried]
        if isinstance(error, _AGAIN) and 1 < trip.most == self._max_attempts:
            trip.most += 1
            others = [*(each for each in left if each.candidate is tried), *others]
        trip.ranking = others
        is_over = not error.is_retryable or trip.attempts >= trip.most or not trip.ranking
        if is_over or not self._budget.spend():
            try:
                raise explained(error, trip)
            finally:
                del error  # it would lead back to this frame

    def _backend(self, dialect: str) -> Backend:
        found = self._backends.get(dialect)
        if found is None:  # its row is a newer version's, or was written by hand
            raise NoEndpoint(f"Nothing here speaks the dialect {dialect!r}.")
        return found

    def _too_late(self, trip: Trip, started: float) -> ApiError:
        waited_s = self._clock() - started
        text = f"No endpoint answered within {waited_s:.0f} s, the time for a first byte."
        return explained(DeadlineExceeded(text), trip)

    def _refuse(self, call: Call, code: str, status: int, started: float) -> None:
        """Record a request that ended outside of any attempt; those that it had have their own rows."""
        total_s = self._clock() - started
        self._settle(
            call,
            Outcome(
                endpoint=_NOWHERE,
                attempt=0,
                status=status,
                ttft_s=None,
                total_s=total_s,
                error=code[:64],
            ),
        )

    def _settle(self, call: Call, outcome: Outcome) -> None:
        if outcome.attempt:
            self._policy.observe(call.facts, outcome)
        for sink in self._sinks:
            sink.record(call.facts, outcome)


class _Dispatch(AbstractAsyncContextManager[Dispatched]):
    """The time from a call's arrival to the last byte of its reply."""

    __slots__ = ("_attempt", "_begun", "_call", "_dispatcher", "_notes")

    def __init__(
        self,
        dispatcher: Dispatcher,
        call: Call,
        notes: MutableMapping[str, object],
        begun: Begun | None,
    ) -> None:
        self._dispatcher = dispatcher
        self._call = call
        self._notes = notes
        self._begun = begun
        self._attempt: Attempt | None = None

    async def __aenter__(self) -> Dispatched:
        self._attempt, dispatched = await self._dispatcher.start(
            self._call, self._notes, self._begun
        )
        return dispatched

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._attempt is not None:
            await self._attempt.__aexit__(kind, error, trace)
