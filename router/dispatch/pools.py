"""Places on endpoints, and who waits for one: pure bookkeeping, without waiting itself.

A pool has as many places as its endpoint takes requests at once. Those who wait are served fairly
between keys: each key in turn, and each key's requests in their order. When the queue is full, the
newest of the key that waits most makes room for a key that waits less.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

_SMOOTHING = 0.2


class Waiter:
    """One request that waits for a place in one of several pools.

    `granted` is the pool that gave it one; `was_pushed_out`: another took its place in the queue;
    `is_over`: it waits no more, whatever came of it.
    """

    __slots__ = ("_ended", "granted", "is_over", "key", "pools", "was_pushed_out")

    def __init__(self, key: str, pools: tuple[str, ...], ended: Callable[[], None]) -> None:
        """Wait on behalf of `key` for a place in any of `pools`; `ended` is called once it is over."""
        self.key = key
        self.pools = pools
        self.granted: str | None = None
        self.was_pushed_out = False
        self.is_over = False
        self._ended = ended

    def grant(self, pool: str) -> None:
        """Take a place there."""
        self.granted = pool
        self.end()

    def push_out(self) -> None:
        """Make room for somebody else."""
        self.was_pushed_out = True
        self.end()

    def end(self) -> None:
        """Wait no more."""
        if not self.is_over:
            self.is_over = True
            self._ended()


class Pool:
    """The places of one endpoint, and the queue for them.

    `in_flight` counts those taken. `hold_s` is how long a place is taken, smoothed; None at first.
    """

    def __init__(self, name: str, limit: int) -> None:
        """Have `limit` places."""
        self.name = name
        self.limit = limit
        self.in_flight = 0
        self.hold_s: float | None = None
        self._queues: OrderedDict[str, deque[Waiter]] = OrderedDict()
        self._waiting = 0

    @property
    def is_free(self) -> bool:
        """Tell whether a newcomer may have a place now: one is free, and nobody waits for it."""
        return self.in_flight < self.limit and not self.waiting

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing depends on it."""
        return not self.in_flight and not self._queues

    @property
    def waiting(self) -> int:
        """Return how many wait."""
        return self._waiting

    def take(self) -> None:
        """Count a place as taken."""
        self.in_flight += 1

    def free(self, held_s: float | None) -> None:
        """Count it as free again; `held_s` tells for how long it was taken, if that says anything."""
        self.in_flight -= 1
        if held_s is not None:
            known = held_s if self.hold_s is None else self.hold_s
            self.hold_s = known + _SMOOTHING * (held_s - known)

    def expected_wait_s(self, key: str) -> float:
        """Return how long a newcomer with this key would wait; 0 while nothing is known."""
        if self.hold_s is None:
            return 0.0
        own = len(self._queues.get(key, ())) + 1
        ahead = sum(min(len(queue), own) for name, queue in self._queues.items() if name != key)
        return (ahead + own) * self.hold_s / self.limit

    def add(self, waiter: Waiter) -> None:
        """Let it wait here."""
        self._queues.setdefault(waiter.key, deque()).append(waiter)
        self._waiting += 1

    def drop(self, waiter: Waiter) -> None:
        """Forget one that waits no more."""
        queue = self._queues.get(waiter.key)
        if queue is None or waiter not in queue:
            return
        queue.remove(waiter)
        self._waiting -= 1
        if not queue:
            del self._queues[waiter.key]

    def newest_of_longest(self, key: str) -> Waiter | None:
        """Return whom a newcomer with this key may push out: None if nobody waits more than it would."""
        if not self._queues:
            return None
        longest = max(self._queues.values(), key=len)
        return longest[-1] if len(longest) > len(self._queues.get(key, ())) + 1 else None

    def next(self) -> Waiter | None:
        """Take the next to be served out of the queue: of the key whose turn it is."""
        if not self._queues:
            return None
        key, queue = next(iter(self._queues.items()))
        waiter = queue.popleft()
        self._waiting -= 1
        if queue:
            self._queues.move_to_end(key)
        else:
            del self._queues[key]
        return waiter

    def __iter__(self) -> Iterator[Waiter]:
        """Iterate over those who wait."""
        return (waiter for queue in self._queues.values() for waiter in queue)
