"""Pools: places and queues as bookkeeping, checked against a model for any order of events."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.dispatch.admission import Admission, Place
from router.dispatch.pools import Pool, Waiter
from router.domain import Candidate, Deployment, Endpoint, EndpointId, Load, Ranked, Zone
from shared.http.errors import QueueFull

KEYS = ("a", "b", "c")
MOST_WAITING = 6


def nothing() -> None:
    """Be told that a waiter is over."""


def waiting_in(pool: Pool, *keys: str) -> list[Waiter]:
    waiters = [Waiter(key, (pool.name,), nothing) for key in keys]
    for waiter in waiters:
        pool.add(waiter)
    return waiters


def served_from(pool: Pool) -> list[str]:
    order = []
    while (waiter := pool.next()) is not None:
        order.append(waiter.key)
    return order


def test_each_key_in_turn() -> None:
    pool = Pool("p", 1)
    waiting_in(pool, *"a" * 5, "b", *"c" * 2)
    assert served_from(pool) == ["a", "b", "c", "a", "c", "a", "a", "a"]
    assert pool.waiting == 0
    assert pool.is_idle


def test_a_key_with_many_delays_another_by_one_round_at_most() -> None:
    pool = Pool("p", 1)
    waiting_in(pool, *"a" * 100)
    for _ in range(7):
        pool.next()
    waiting_in(pool, "b")
    assert "b" in [waiter.key for waiter in (pool.next(), pool.next()) if waiter is not None]


def test_within_a_key_it_is_first_come_first_served() -> None:
    pool = Pool("p", 1)
    waiters = waiting_in(pool, "a", "b", "a", "a", "b")
    pool.drop(waiters[2])
    pool.drop(waiters[2])
    served = [pool.next() for _ in range(4)]
    of_a = [waiter for waiter in served if waiter is not None and waiter.key == "a"]
    assert of_a == [waiters[0], waiters[3]]
    assert pool.next() is None


def test_the_newest_of_the_key_that_waits_most_makes_room() -> None:
    pool = Pool("p", 1)
    waiters = waiting_in(pool, "a", "b", "a", "a", "b")
    assert pool.newest_of_longest("c") is waiters[3]
    assert pool.newest_of_longest("b") is None  # it would wait with as many as the longest has
    assert pool.newest_of_longest("a") is None
    assert Pool("q", 1).newest_of_longest("a") is None


def test_a_waiter_ends_once() -> None:
    told: list[None] = []
    waiter = Waiter("a", ("p",), lambda: told.append(None))
    waiter.grant("p")
    waiter.push_out()
    waiter.end()
    assert len(told) == 1
    assert waiter.granted == "p"


def test_the_expected_wait_counts_what_would_be_served_first() -> None:
    pool = Pool("p", 2)
    assert pool.expected_wait_s("a") == 0  # nothing is known
    pool.take()
    pool.free(4.0)
    waiting_in(pool, *"a" * 10, "b")
    assert pool.expected_wait_s("a") == pytest.approx((10 + 1 + 1) * 4 / 2)
    assert pool.expected_wait_s("b") == pytest.approx((2 + 2) * 4 / 2)
    assert pool.expected_wait_s("c") == pytest.approx((1 + 1 + 1) * 4 / 2)
    pool.take()
    pool.free(None)  # a request that failed tells nothing
    assert pool.hold_s == 4.0


def ranked_of(name: str, limit: int | None) -> Ranked:
    endpoint = Endpoint(id=EndpointId(name), base_url="http://x", backend="fake", zone=Zone.LOCAL)
    deployment = Deployment(endpoint=endpoint, upstream_name="m", pool=name, max_in_flight=limit)
    return Ranked(Candidate(deployment, Load()), "test")


class Admitted(RuleBasedStateMachine):
    """An admission over two endpoints; requests come, leave, end, and limits change."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 0.0
        self.admission = Admission(lambda: self.now, most_waiting=MOST_WAITING, longest_s=1e9)
        self.limits = {"p": 2, "q": 1}
        self.tasks: list[Any] = []
        self.places: list[Place] = []
        self.asked = 0

    def teardown(self) -> None:
        for asked in self.tasks:
            asked.task.cancel()
        self.turn()
        self.collect()
        for place in self.places:
            place.free(was_served=False)
        assert self.admission.taken == 0
        assert self.admission.waiting == 0
        self.loop.close()

    def turn(self) -> None:
        """Let the loop run until nothing is to be done."""
        for _ in range(4):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def collect(self) -> None:
        for asked in [each for each in self.tasks if each.task.done()]:
            self.tasks.remove(asked)
            if not asked.task.cancelled() and asked.task.exception() is None:
                self.places.append(asked.task.result())

    def ranking(self, names: str) -> list[Ranked]:
        return [ranked_of(name, self.limits[name]) for name in names]

    @rule(key=st.sampled_from(KEYS), names=st.sampled_from(["p", "q", "pq", "qp"]))
    def come(self, key: str, names: str) -> None:
        place = self.admission.take(self.ranking(names))
        if place is not None:
            self.places.append(place)
            return
        self.asked += 1
        task = self.loop.create_task(self.admission.wait(self.ranking(names), key))
        self.tasks.append(SimpleNamespace(task=task, key=key, names=names, number=self.asked))
        self.turn()
        if task.done() and not task.cancelled() and task.exception() is not None:
            assert isinstance(task.exception(), QueueFull)
        self.collect()

    @precondition(lambda self: self.places)
    @rule(data=st.data(), held_s=st.floats(0.1, 5), was_served=st.booleans())
    def end(self, data: st.DataObject, held_s: float, was_served: bool) -> None:
        self.now += held_s
        place = self.places.pop(data.draw(st.integers(0, len(self.places) - 1)))
        place.free(was_served=was_served)
        place.free(was_served=was_served)  # a second time changes nothing
        self.turn()
        self.collect()

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.tasks[data.draw(st.integers(0, len(self.tasks) - 1))].task.cancel()
        self.turn()
        self.collect()

    @precondition(lambda self: self.tasks and self.places)
    @rule(data=st.data())
    def leave_as_the_place_comes(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.tasks))
        self.places.pop().free(was_served=True)
        asked.task.cancel()  # before it has heard of the place that it may have been given
        self.turn()
        self.collect()

    @rule(name=st.sampled_from("pq"), limit=st.integers(1, 4))
    def change_limit(self, name: str, limit: int) -> None:
        self.limits[name] = limit
        place = self.admission.take(self.ranking(name))  # a request brings the news
        if place is not None:
            place.free(was_served=False)
        self.turn()
        self.collect()

    @invariant()
    def nobody_waits_while_a_place_is_free(self) -> None:
        taken = Counter(place.ranked.candidate.deployment.pool for place in self.places)
        assert self.admission.taken == len(self.places)
        assert self.admission.waiting == len(self.tasks)
        for asked in self.tasks:
            # it waits where the queue had room; if one is full it may wait in the other alone
            assert any(taken[name] >= self.limits[name] for name in asked.names)

    @invariant()
    def queues_are_bounded(self) -> None:
        for name in self.limits:
            alone = [asked for asked in self.tasks if asked.names == name]
            assert len(alone) <= MOST_WAITING


class Steady(RuleBasedStateMachine):
    """One endpoint with a limit that stays: never more places than that, keys served in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool("p", 3)
        self.queues: dict[str, list[Waiter]] = {key: [] for key in KEYS}
        self.passed: dict[str, int] = {}

    @rule(key=st.sampled_from(KEYS))
    def come(self, key: str) -> None:
        if self.pool.is_free:
            self.pool.take()
            return
        if not self.queues[key]:
            self.passed[key] = 0
        self.queues[key] += waiting_in(self.pool, key)

    @precondition(lambda self: self.pool.in_flight)
    @rule()
    def end(self) -> None:
        self.pool.free(1.0)
        waiter = self.pool.next()
        if waiter is None:
            assert not any(self.queues.values())
            return
        self.pool.take()
        assert self.queues[waiter.key].pop(0) is waiter
        self.passed[waiter.key] = 0
        for key, queue in self.queues.items():
            if queue and key != waiter.key:
                self.passed[key] += 1
                assert self.passed[key] < len(KEYS)

    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def leave(self, data: st.DataObject, key: str) -> None:
        if self.queues[key]:
            at = data.draw(st.integers(0, len(self.queues[key]) - 1))
            self.pool.drop(self.queues[key].pop(at))

    @invariant()
    def counts_add_up(self) -> None:
        assert 0 <= self.pool.in_flight <= self.pool.limit
        assert self.pool.waiting == sum(map(len, self.queues.values())) == len(list(self.pool))


FEW = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAdmitted = Admitted.TestCase
TestAdmitted.settings = FEW
TestSteady = Steady.TestCase
TestSteady.settings = FEW
