"""Admission: a place at once, a place later, or a refusal that says when to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from router.dispatch.admission import Admission, Place
from shared.http.errors import QueueFull, QueueTimeout
from tests.router.test_dispatch_pools import ranked_of


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def now() -> Now:
    return Now()


async def turns(count: int = 4) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def taken(admission: Admission, name: str = "e", limit: int = 1) -> Place:
    place = admission.take([ranked_of(name, limit)])
    assert place is not None
    return place


def asking(
    admission: Admission, key: str = "k", name: str = "e", limit: int = 1
) -> asyncio.Task[Place]:
    return asyncio.ensure_future(admission.wait([ranked_of(name, limit)], key))


async def refusal(waiting: Awaitable[Place]) -> QueueFull | QueueTimeout:
    with pytest.raises((QueueFull, QueueTimeout)) as refused:
        await waiting
    assert isinstance(refused.value, (QueueFull, QueueTimeout))
    headers = dict(refused.value.response_headers())
    assert int(headers[b"retry-after"]) >= 1
    return refused.value


async def test_without_a_limit_nothing_is_counted(now: Now) -> None:
    admission = Admission(now)
    places = [admission.take([ranked_of("e", None)]) for _ in range(1000)]
    assert all(place is not None for place in places)
    assert (admission.taken, admission.waiting) == (0, 0)


async def test_who_waits_gets_the_place_that_comes_free(now: Now) -> None:
    admission = Admission(now)
    first = taken(admission)
    assert admission.take([ranked_of("e", 1)]) is None
    second = asking(admission)
    await turns()
    assert admission.waiting == 1
    now.s += 3
    first.free(was_served=True)
    assert admission.take([ranked_of("e", 1)]) is None  # it is the other's already
    place = await second
    assert place.waited_s == 3
    assert (admission.taken, admission.waiting) == (1, 0)
    place.free(was_served=True)
    place.free(was_served=True)
    assert admission.taken == 0


async def test_the_best_endpoint_with_room_is_taken_and_any_is_waited_for(now: Now) -> None:
    admission = Admission(now)
    ranking = [ranked_of("a", 1), ranked_of("b", 1)]
    a, b = admission.take(ranking), admission.take(ranking)
    assert a is not None
    assert b is not None
    assert (a.ranked, b.ranked) == (ranking[0], ranking[1])
    waiting = [asyncio.ensure_future(admission.wait(ranking, key)) for key in "xyz"]
    await turns()
    assert admission.waiting == 3
    b.free(was_served=True)
    a.free(was_served=True)
    got = [await waiting[0], await waiting[1]]
    assert [place.ranked for place in got] == [ranking[1], ranking[0]]
    assert admission.waiting == 1
    waiting[2].cancel()
    await turns()
    assert admission.waiting == 0


async def test_a_place_given_to_a_client_that_left_goes_on_to_the_next(now: Now) -> None:
    admission = Admission(now)
    first = taken(admission)
    leaving, staying = asking(admission), asking(admission)
    await turns()
    first.free(was_served=True)
    leaving.cancel()
    place = await staying
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert admission.taken == 1
    place.free(was_served=True)
    assert (admission.taken, admission.waiting) == (0, 0)


async def test_who_leaves_the_queue_frees_its_place_in_it(now: Now) -> None:
    admission = Admission(now, most_waiting=1)
    first = taken(admission)
    leaving = asking(admission)
    await turns()
    leaving.cancel()
    await turns()
    assert admission.waiting == 0
    next_one = asking(admission)
    await turns()
    first.free(was_served=True)
    (await next_one).free(was_served=True)


async def test_a_full_queue_refuses_at_once(now: Now) -> None:
    admission = Admission(now, most_waiting=2)
    taken(admission)
    waiting = [asking(admission) for _ in range(2)]
    await turns()
    error = await refusal(asking(admission))
    assert (error.status, error.code, error.is_retryable) == (429, "queue_full", True)
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()


async def test_no_queue_at_all(now: Now) -> None:
    admission = Admission(now, most_waiting=0)
    first = taken(admission)
    assert (await refusal(asking(admission))).code == "queue_full"
    first.free(was_served=True)
    taken(admission)


async def test_in_a_full_queue_the_greedy_key_makes_room(now: Now) -> None:
    admission = Admission(now, most_waiting=3)
    first = taken(admission)
    greedy = [asking(admission, "greedy") for _ in range(3)]
    await turns()
    modest = asking(admission, "modest")
    error = await refusal(greedy[2])
    assert error.code == "queue_full"
    assert admission.waiting == 3
    order = []
    first.free(was_served=True)
    for task in (greedy[0], modest, greedy[1]):
        order.append(task.done())
        (await task).free(was_served=True)
    assert admission.taken == admission.waiting == 0


async def test_a_wait_that_would_be_too_long_is_refused_at_once(now: Now) -> None:
    admission = Admission(now, longest_s=10)
    place = taken(admission)
    now.s += 6
    place.free(was_served=True)
    taken(admission)
    waiting = asking(admission)  # 6 s
    await turns()
    error = await refusal(asking(admission))  # 12 s
    assert error.code == "queue_full"
    assert error.retry_after_s == 12
    waiting.cancel()


async def test_who_waits_too_long_hears_so(now: Now) -> None:
    admission = Admission(now, longest_s=0.02)
    first = taken(admission)
    error = await refusal(asking(admission))
    assert (error.status, error.code, error.is_retryable) == (503, "queue_timeout", True)
    assert "--max-in-flight" in error.message
    assert admission.waiting == 0
    first.free(was_served=True)
    assert admission.taken == 0


async def test_a_wait_where_one_queue_is_full_is_in_the_other(now: Now) -> None:
    admission = Admission(now, most_waiting=1)
    ranking = [ranked_of("a", 1), ranked_of("b", 1)]
    a = taken(admission, "a")
    b = taken(admission, "b")
    alone = asking(admission, name="a")
    await turns()
    both = asyncio.ensure_future(admission.wait(ranking, "k"))
    await turns()
    assert (await refusal(asyncio.ensure_future(admission.wait(ranking, "k")))).status == 429
    b.free(was_served=True)
    assert (await both).ranked is ranking[1]
    a.free(was_served=True)
    await alone


async def test_more_room_lets_those_go_who_wait(now: Now) -> None:
    admission = Admission(now)
    taken(admission)
    waiting = [asking(admission) for _ in range(3)]
    await turns()
    assert admission.take([ranked_of("e", 3)]) is None  # two who came before have the new places
    await turns()
    assert [task.done() for task in waiting] == [True, True, False]
    assert admission.take([ranked_of("e", None)]) is not None  # no limit any more
    await waiting[2]
    assert admission.waiting == 0


async def test_less_room_holds_back_the_next(now: Now) -> None:
    admission = Admission(now)
    places = [taken(admission, limit=3) for _ in range(3)]
    waiting = asking(admission, limit=1)
    await turns()
    for place in places[:2]:
        place.free(was_served=True)
    await turns()
    assert not waiting.done()
    places[2].free(was_served=True)
    await waiting
    assert admission.taken == 1


@pytest.mark.parametrize(("limit", "processes", "share"), [(8, 4, 2), (5, 4, 2), (1, 4, 1)])
async def test_several_processes_share_the_places(
    now: Now, limit: int, processes: int, share: int
) -> None:
    admission = Admission(now, processes=processes)
    for _ in range(share):
        taken(admission, limit=limit)
    assert admission.take([ranked_of("e", limit)]) is None


async def test_idle_pools_are_not_kept_for_ever(now: Now) -> None:
    admission = Admission(now)
    for number in range(5000):
        taken(admission, str(number)).free(was_served=True)
    assert len(admission._pools) <= 4096
