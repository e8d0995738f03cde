"""Admission: a request gets a place on an endpoint, waits for one, or is refused at once.

Refusing early keeps the goodput of an overloaded endpoint: whoever would wait longer than the limit
hears so at once, and those who are let in are served in time.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Sequence

from router.dispatch.pools import Pool, Waiter
from router.domain import Deployment, Ranked
from shared.http.errors import QueueFull, QueueTimeout
from shared.kit.clock import Clock

# Idle pools are kept up to here, since they know how long their places are taken.
_MOST_POOLS = 4096


class Place:
    """A place on an endpoint, taken until `free`."""

    __slots__ = ("_admission", "_pool", "_since", "ranked", "waited_s")

    def __init__(
        self, ranked: Ranked, admission: Admission, pool: Pool | None, since: float, waited_s: float
    ) -> None:
        """Hold a place for the choice `ranked`; without a pool the endpoint has no limit."""
        self.ranked = ranked
        self.waited_s = waited_s
        self._admission = admission
        self._pool = pool
        self._since = since

    def free(self, *, was_served: bool) -> None:
        """Give the place to the next; `was_served`: how long it took tells how long others will."""
        if self._pool is not None:
            self._admission.free(self._pool, self._since if was_served else None)
            self._pool = None


class Admission:
    """The pools of one process. Methods that do not await are atomic on the loop.

    With several processes each has its share of an endpoint's places.
    """

    def __init__(
        self, clock: Clock, *, most_waiting: int = 256, longest_s: float = 30.0, processes: int = 1
    ) -> None:
        """Have no pools yet.

        Args:
            clock: a monotonic one.
            most_waiting: requests that may wait for one endpoint.
            longest_s: how long each may wait.
            processes: how many of this router share the endpoints.
        """
        self._clock = clock
        self._most_waiting = most_waiting
        self._longest_s = longest_s
        self._processes = processes
        self._pools: dict[str, Pool] = {}

    @property
    def waiting(self) -> int:
        """Return how many requests wait."""
        return len({waiter for pool in self._pools.values() for waiter in pool})

    @property
    def taken(self) -> int:
        """Return how many places of limited endpoints are taken."""
        return sum(pool.in_flight for pool in self._pools.values())

    def take(self, ranking: Sequence[Ranked]) -> Place | None:
        """Return a place on the best endpoint that has one free now; None if none has."""
        for ranked in ranking:
            deployment = ranked.candidate.deployment
            if deployment.max_in_flight is None:
                self._lift(deployment.pool)
                return Place(ranked, self, None, 0.0, 0.0)
            pool = self._pool(deployment)
            if pool.is_free:
                pool.take()
                return Place(ranked, self, pool, self._clock(), 0.0)
        return None

    async def wait(self, ranking: Sequence[Ranked], key: str) -> Place:
        """Wait for a place on any of these endpoints, all of which are full.

        Args:
            ranking: where it may go; not empty.
            key: on whose behalf it waits.

        Raises:
            QueueFull: too many wait already, or it would take too long.
            QueueTimeout: none came free in time.
        """
        by_pool: dict[str, Ranked] = {}
        for ranked in ranking:
            by_pool.setdefault(self._pool(ranked.candidate.deployment).name, ranked)
        joined = self._joined([self._pools[name] for name in by_pool], key)
        is_over = asyncio.Event()
        waiter = Waiter(key, tuple(pool.name for pool in joined), is_over.set)
        for pool in joined:
            pool.add(waiter)
        began = self._clock()
        timer = asyncio.get_running_loop().call_later(self._longest_s, self._give_up, waiter)
        try:
            await is_over.wait()
        except BaseException:
            self._withdraw(waiter)
            raise
        finally:
            timer.cancel()
            self._leave(waiter)
        now = self._clock()
        if waiter.granted is None:
            raise self._refused(waiter, now - began)
        return Place(by_pool[waiter.granted], self, self._pools[waiter.granted], now, now - began)

    def free(self, pool: Pool, since: float | None) -> None:
        """Take a place back, and give it to the next who waits."""
        pool.free(None if since is None else self._clock() - since)
        self._serve(pool)
        if pool.is_idle and len(self._pools) > _MOST_POOLS:
            del self._pools[pool.name]

    def _pool(self, deployment: Deployment) -> Pool:
        limit = math.ceil((deployment.max_in_flight or 1) / self._processes)
        pool = self._pools.get(deployment.pool)
        if pool is None:
            pool = self._pools[deployment.pool] = Pool(deployment.pool, limit)
        if pool.limit != limit:  # it was changed; if there is more room now, others came first
            pool.limit = limit
            self._serve(pool)
        return pool

    def _lift(self, name: str) -> None:
        """Let those go who wait for an endpoint that has no limit any more."""
        pool = self._pools.get(name) if self._pools else None
        if pool is not None and pool.waiting:
            pool.limit = sys.maxsize
            self._serve(pool)

    def _serve(self, pool: Pool) -> None:
        """Give the places that are free to those who wait."""
        while pool.in_flight < pool.limit and (waiter := pool.next()) is not None:
            if not waiter.is_over:
                self._leave(waiter)
                pool.take()
                waiter.grant(pool.name)

    def _joined(self, pools: Sequence[Pool], key: str) -> Sequence[Pool]:
        """Return the pools whose queues a request with this key may join, or refuse it at once."""
        roomy = [pool for pool in pools if pool.waiting < self._most_waiting]
        shortest = min(pools, key=lambda pool: pool.waiting)
        joined = roomy or [shortest]
        wait_s = min(pool.expected_wait_s(key) for pool in joined)
        if wait_s > self._longest_s:
            raise _full(wait_s)
        if not roomy:
            pushed = shortest.newest_of_longest(key)
            if pushed is None:
                raise _full(wait_s)
            self._leave(pushed)
            pushed.push_out()
        return joined

    def _give_up(self, waiter: Waiter) -> None:
        self._leave(waiter)
        waiter.end()

    def _leave(self, waiter: Waiter) -> None:
        for name in waiter.pools:
            if name in self._pools:
                self._pools[name].drop(waiter)

    def _withdraw(self, waiter: Waiter) -> None:
        """Let a request go whose client left; a place that it was just given goes on."""
        waiter.end()
        if waiter.granted is not None:
            self.free(self._pools[waiter.granted], None)

    def _refused(self, waiter: Waiter, waited_s: float) -> QueueFull | QueueTimeout:
        hold_s = min(
            self._pools[name].hold_s or 1.0 for name in waiter.pools if name in self._pools
        )
        if waiter.was_pushed_out:
            return _full(hold_s)
        return QueueTimeout(
            f"No endpoint of this model came free within {waited_s:.0f} s. Ask again later, or give it "
            "more room (iir providers set NAME --max-in-flight N).",
            retry_after_s=max(1.0, hold_s),
        )


def _full(wait_s: float) -> QueueFull:
    return QueueFull(
        "All endpoints of this model are busy, and too many requests wait for them already. Ask again "
        "later.",
        retry_after_s=max(1.0, min(wait_s, 60.0)),
    )
