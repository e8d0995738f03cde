"""The line for one model: who is in flight, who waits, and who is next. Pure bookkeeping.

Waiters come to their turn by priority, and in their order within one. There is no fairness between
callers here: the router, which knows their keys, has it (`router.dispatch.pools`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from local_agent.domain import MAX_QUEUE, QUEUE_MAX_WAIT_S, Upstream
from shared.http.errors import ApiError

_SMOOTHING = 0.2


class Waiter:
    """One request that waits. Times are seconds of the agent's monotonic clock.

    `since` is when it came, `load_by` until when it waits for a model that does not serve,
    `leave_by` when it gives up whatever it waits for. Once it is over it has an `upstream`, and with
    it a slot, or an `error`; neither if its client left.
    """

    __slots__ = (
        "_ended",
        "error",
        "is_over",
        "leave_by",
        "load_by",
        "priority",
        "since",
        "upstream",
    )

    def __init__(
        self,
        since: float,
        ended: Callable[[], None],
        *,
        load_by: float,
        leave_by: float,
        priority: int = 0,
    ) -> None:
        """Wait; `ended` is called once it is over."""
        self.since = since
        self.load_by = load_by
        self.leave_by = leave_by
        self.priority = priority
        self.upstream: Upstream | None = None
        self.error: ApiError | None = None
        self.is_over = False
        self._ended = ended

    def grant(self, upstream: Upstream) -> None:
        """Take the slot that was counted for it."""
        self.upstream = upstream
        self.end()

    def refuse(self, error: ApiError) -> None:
        """Wait no more, for this reason."""
        self.error = error
        self.end()

    def end(self) -> None:
        """Wait no more."""
        if not self.is_over:
            self.is_over = True
            self._ended()


class Line:
    """The slots of one model, and the queue for them.

    `in_flight` counts the slots that are taken, of `limit` (None: there are any number). At most
    `max_waiting` may wait, each up to `longest_s` while the model serves. `hold_s` is how long a
    slot is taken, smoothed; None at first.
    """

    __slots__ = ("_lanes", "hold_s", "in_flight", "limit", "longest_s", "max_waiting", "waiting")

    def __init__(self) -> None:
        """Be empty, without a limit for slots."""
        self.limit: int | None = None
        self.max_waiting = MAX_QUEUE
        self.longest_s = QUEUE_MAX_WAIT_S
        self.in_flight = 0
        self.waiting = 0
        self.hold_s: float | None = None
        self._lanes: dict[int, deque[Waiter]] = {}

    @property
    def has_room(self) -> bool:
        """Tell whether a slot is free."""
        return self.limit is None or self.in_flight < self.limit

    @property
    def is_free(self) -> bool:
        """Tell whether a newcomer may have a slot now: one is free, and nobody waits for it."""
        return not self.waiting and (self.limit is None or self.in_flight < self.limit)

    @property
    def is_full(self) -> bool:
        """Tell whether no more may wait."""
        return self.waiting >= self.max_waiting

    @property
    def expected_wait_s(self) -> float:
        """Return how long a newcomer would wait for a slot; 0 while nothing is known."""
        if self.hold_s is None or self.limit is None or self.is_free:
            return 0.0
        return (self.waiting + 1) * self.hold_s / self.limit

    def take(self) -> None:
        """Count a slot as taken."""
        self.in_flight += 1

    def leave(self, held_s: float | None) -> None:
        """Count it as free again; `held_s` tells for how long it was taken, if that says anything."""
        self.in_flight -= 1
        if held_s is None:
            return
        known = held_s if self.hold_s is None else self.hold_s
        self.hold_s = known + _SMOOTHING * (held_s - known)

    def join(self, waiter: Waiter) -> Waiter | None:
        """Let it wait, and return whom that turns away.

        Nobody (None) as long as there is a place; then the newest of the least priority, if that is
        less than the waiter's; else the waiter itself.
        """
        pushed: Waiter | None = None
        if self.is_full:
            least = min(self._lanes, default=waiter.priority)
            if least >= waiter.priority:
                return waiter
            pushed = self._lanes[least][-1]
            self.drop(pushed)
        self._lanes.setdefault(waiter.priority, deque()).append(waiter)
        self.waiting += 1
        return pushed

    def next(self) -> Waiter | None:
        """Take the next out of the queue."""
        if not self._lanes:
            return None
        waiter = self._lanes[max(self._lanes)][0]
        self.drop(waiter)
        return waiter

    def drop(self, waiter: Waiter) -> None:
        """Forget one that waits no more."""
        lane = self._lanes.get(waiter.priority)
        if lane is None or waiter not in lane:
            return
        lane.remove(waiter)
        self.waiting -= 1
        if not lane:
            del self._lanes[waiter.priority]

    def due(self, waiter: Waiter, open_since: float | None) -> float:
        """Return when its wait is over; `open_since` is when the model began to serve (None: it does not).

        The time of a load does not count as time in the queue.
        """
        if open_since is None:
            return min(waiter.load_by, waiter.leave_by)
        return min(max(waiter.since, open_since) + self.longest_s, waiter.leave_by)

    def overdue(self, now: float, open_since: float | None) -> list[Waiter]:
        """Take those out of the queue who have waited for too long."""
        found = [waiter for waiter in self if now >= self.due(waiter, open_since)]
        for waiter in found:
            self.drop(waiter)
        return found

    def next_due(self, open_since: float | None) -> float | None:
        """Return when the first of those who wait has waited for too long; None if nobody waits."""
        return min((self.due(waiter, open_since) for waiter in self), default=None)

    def __iter__(self) -> Iterator[Waiter]:
        """Iterate over those who wait."""
        return (waiter for lane in self._lanes.values() for waiter in lane)
