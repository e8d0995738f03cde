"""Lets requests through to workers: at once, after a wait for a load or a slot, or not at all.

A request that finds a free slot costs a few comparisons: no task, no timer. Those that wait are looked
after by the supervisor's loop, which is the one that knows the time (`settle`, `next_due`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType

import anyio

from local_agent import refusals
from local_agent.catalog import Entry
from local_agent.domain import ModelId, Upstream, WorkerState
from local_agent.journal import Journal
from local_agent.lifecycle import ALIVE
from local_agent.line import Waiter
from local_agent.memory.residency import Residency
from local_agent.weights.progress import Progress
from local_agent.worker import Worker
from shared.http.errors import ApiError, ModelLoading
from shared.kit.clock import Clock

_TELL_EVERY_S = 1.0


class Place(AbstractContextManager["Place"]):
    """A request's slot, taken until the end of the block. `upstream` is where to send the request.

    `waited_s` is how long it took to get.
    """

    __slots__ = ("_admission", "_since", "_worker", "upstream", "waited_s")

    def __init__(
        self,
        admission: Admission,
        worker: Worker,
        upstream: Upstream,
        since: float,
        waited_s: float,
    ) -> None:
        self.upstream = upstream
        self.waited_s = waited_s
        self._admission = admission
        self._worker = worker
        self._since = since

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the slot to the next who waits."""
        self._admission.leave(self._worker, self._since)


class Admission:
    """The lines before all workers of an agent. Methods that do not await are atomic."""

    def __init__(
        self,
        *,
        workers: Mapping[ModelId, Worker],
        residency: Residency,
        pulling: Callable[[ModelId], Progress | None],
        journal: Journal,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        """Take what the supervisor owns.

        Args:
            workers: the workers, each with its line.
            residency: who may be in memory.
            pulling: tells how far the pull of a model is.
            journal: tells of changes.
            clock: the agent's monotonic clock.
            wake: makes the supervisor's loop look at everything.
        """
        self._workers = workers
        self._residency = residency
        self._pulling = pulling
        self._journal = journal
        self._clock = clock
        self._wake = wake
        self._entries: Mapping[ModelId, Entry] = {}
        self._is_closed = False
        self._due = math.inf
        self._told_at = -math.inf

    # -- what requests ask ----------------------------------------------------------------------

    async def admit(
        self,
        model: ModelId,
        *,
        load_wait_s: float,
        wait_s: float | None = None,
        priority: int = 0,
        request_id: str | None = None,
    ) -> Place:
        """Return a slot of the model's worker, in turn; load the model first if need be.

        Open the place right after the return, without an await between.

        Args:
            model: an id, as `Supervisor.resolve` gives it.
            load_wait_s: how long to wait for a load.
            wait_s: how long the client waits at most, whatever for (None: it has no limit of its own);
                with 0 a load is started, but not waited for.
            priority: those with a higher one come first.
            request_id: who asks, for the events.

        Raises:
            ModelNotFound: nobody knows this id.
            ModelNotPulled: the weights are not on this host.
            ModelLoading: not ready in time.
            QueueFull: too many wait for the model already.
            QueueTimeout: no slot came free in time.
            InsufficientMemory: it does not fit beside what has to stay.
            Unavailable: it can't run here, has failed and waits for its next start, is
                quarantined, or the agent is stopping.
        """
        upstream = self._upstream(model)
        worker = self._workers[model]
        now = self._clock()
        if upstream is not None and worker.line.is_free:
            return self._taken(model, worker, upstream, now)
        if upstream is None:
            self._ask(model, request_id, is_standing=wait_s == 0)
        if wait_s == 0:
            raise self._too_late(worker)
        leave_by = math.inf if wait_s is None else now + wait_s
        return await self._wait(worker, now, now + load_wait_s, leave_by, priority)

    def admit_now(self, model: ModelId) -> Place | None:
        """Do as `admit` if a slot is free now; None: the request would have to wait, or is refused."""
        upstream = self._upstream(model)
        worker = self._workers[model]
        if upstream is None or not worker.line.is_free:
            return None
        return self._taken(model, worker, upstream, self._clock())

    def _taken(self, model: ModelId, worker: Worker, upstream: Upstream, now: float) -> Place:
        worker.line.take()
        self._residency.entered(model)
        return Place(self, worker, upstream, now, 0.0)

    async def ensure_ready(self, model: ModelId, deadline_s: float) -> Upstream:
        """Return where the model serves; load it first if need be. It takes no slot.

        With a `deadline_s` of 0 a load is started, but not waited for. Raises what `admit` raises,
        but for the queue.
        """
        upstream = self._upstream(model)
        if upstream is not None:
            return upstream
        self._ask(model, None, is_standing=True)
        try:
            with self._residency.waiting(model), anyio.move_on_after(max(0.0, deadline_s)):
                while upstream is None:
                    await self._journal.next()
                    upstream = self._upstream(model)
                    # it may have been sent away meanwhile
                    self._ask(model, None, is_standing=True)
        finally:
            self._wake()  # as long as this waited, the model was not to be sent away
        if upstream is None:
            raise self._loading(self._workers[model])
        return upstream

    def leave(self, worker: Worker, since: float | None) -> None:
        """Take back a slot that was used from `since` on (None: it was not used), for the next."""
        line = worker.line
        line.leave(None if since is None else self._clock() - since)
        if line.waiting:
            self._serve(worker)
        # a drain may be over, or somebody waits for memory; else nothing depends on it
        if not line.in_flight and (self._residency.left(worker.model) or worker.upstream is None):
            self._wake()

    # -- what the supervisor tells --------------------------------------------------------------

    def set_entries(self, entries: Mapping[ModelId, Entry]) -> None:
        """Take the known models, each of which has a worker, and the bounds of their lines."""
        self._entries = entries
        for model, entry in entries.items():
            line = self._workers[model].line
            line.limit = entry.max_in_flight
            line.max_waiting = entry.deployment.max_queue
            line.longest_s = entry.deployment.queue_max_wait_s

    def close(self) -> None:
        """Let nobody through any more: the agent is stopping."""
        self._is_closed = True

    def settle(self) -> None:
        """Let those go who wait: to a slot that is free, or with the reason why there is none."""
        now = self._clock()
        for worker in self._workers.values():
            line = worker.line
            if not line.waiting:
                continue
            if self._refusal(worker.model) is not None:
                self._refuse_all(worker)
            else:
                self._serve(worker)
            for waiter in line.overdue(now, worker.open_since):
                if worker.upstream is None:  # it will come again, and find the model loaded
                    self._residency.ask(worker.model, is_standing=True)
                waiter.refuse(self._too_late(worker))

    def next_due(self) -> float | None:
        """Return when time alone will change what `settle` does; None if it won't."""
        dues = (
            worker.line.next_due(worker.open_since)
            for worker in self._workers.values()
            if worker.line.waiting
        )
        self._due = min((due for due in dues if due is not None), default=math.inf)
        return None if self._due == math.inf else self._due

    # -- inside ---------------------------------------------------------------------------------

    async def _wait(
        self, worker: Worker, now: float, load_by: float, leave_by: float, priority: int
    ) -> Place:
        over = anyio.Event()
        waiter = Waiter(now, over.set, load_by=load_by, leave_by=leave_by, priority=priority)
        pushed = worker.line.join(waiter)
        if pushed is waiter:
            raise self._full(worker)
        if pushed is not None:
            pushed.refuse(self._full(worker))
        if worker.line.due(waiter, worker.open_since) < self._due:
            self._wake()
        try:
            await over.wait()
        except BaseException:
            self._withdraw(worker, waiter)
            raise
        if waiter.upstream is None:
            raise waiter.error or self._too_late(worker)
        since = self._clock()
        return Place(self, worker, waiter.upstream, since, since - now)

    def _withdraw(self, worker: Worker, waiter: Waiter) -> None:
        """Let a request go whose client left; a slot that it was just given goes on."""
        waiter.end()
        worker.line.drop(waiter)
        if waiter.upstream is not None:
            self.leave(worker, None)
        if not worker.line.waiting:
            self._wake()  # nobody may want the model any more

    def _serve(self, worker: Worker) -> None:
        upstream = worker.upstream
        line = worker.line
        while upstream is not None and line.has_room and (waiter := line.next()) is not None:
            line.take()
            self._residency.entered(worker.model)
            waiter.grant(upstream)

    def _refuse_all(self, worker: Worker) -> None:
        while (waiter := worker.line.next()) is not None:
            # each gets an error of its own: whoever answers adds to it
            waiter.refuse(self._refusal(worker.model) or self._too_late(worker))

    def _upstream(self, model: ModelId) -> Upstream | None:
        """Return where it serves, None if it will soon; raise if it won't."""
        if model in self._entries and not self._is_closed:
            upstream = self._workers[model].upstream
            if upstream is not None:
                return upstream
        refused = self._refusal(model)
        if refused is not None:
            raise refused
        return None

    def _refusal(self, model: ModelId) -> ApiError | None:
        """Return why the model is not worth waiting for; None if it is."""
        entry = self._entries.get(model)
        if entry is None:
            return refusals.unknown(model)
        if self._is_closed:
            return refusals.stopping()
        worker = self._workers[model]
        if worker.upstream is not None:
            return None
        if worker.status.state is WorkerState.PULLING:
            return refusals.pulling(model, self._pulling(model))
        refused = refusals.refusal(entry, worker.status, self._clock())
        if refused is not None:
            return refused
        outlook = None if entry.deployment.external_url else self._residency.refusal(model)
        return None if outlook is None else outlook.refusal()

    def _ask(self, model: ModelId, request_id: str | None, *, is_standing: bool) -> None:
        if self._residency.ask(model, request_id, is_standing=is_standing):
            self._wake()

    def _too_late(self, worker: Worker) -> ApiError:
        """Return the error for who can't or won't wait longer."""
        if worker.upstream is None:
            return self._loading(worker)
        return refusals.busy(worker.model, worker.line.expected_wait_s)

    def _full(self, worker: Worker) -> ApiError:
        """Return the error for who may not even wait, and let the router know soon."""
        now = self._clock()
        if now >= self._told_at + _TELL_EVERY_S:
            self._told_at = now
            self._journal.notify()
        return refusals.full(worker.model, worker.line.waiting, worker.line.expected_wait_s)

    def _loading(self, worker: Worker) -> ModelLoading:
        model, status, residency = worker.model, worker.status, self._residency
        expected_s = residency.load_s(model)
        if residency.is_queued(model) or residency.why_leaving(model) is not None:
            waited_s, cause = residency.waited_s(model), residency.room.shortage(model)
            return refusals.waiting(model, waited_s, expected_s, cause)
        is_alive = status.state in ALIVE
        elapsed_s = self._clock() - status.since if is_alive else 0.0
        return refusals.loading(model, elapsed_s, expected_s)
