"""The line for one model, by itself: whose turn it is, who is turned away, and when."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_agent.domain import EngineLoad
from local_agent.line import Line, Waiter
from local_agent.load import total_load

INF = float("inf")


def line_of(limit: int | None = 1, most: int = 3, longest_s: float = 10.0) -> Line:
    line = Line()
    line.limit, line.max_waiting, line.longest_s = limit, most, longest_s
    return line


def waiter(since: float = 0.0, priority: int = 0, **limits: float) -> Waiter:
    bounds = {"load_by": INF, "leave_by": INF, **limits}
    return Waiter(since, lambda: None, priority=priority, **bounds)


def test_turns_go_by_priority_and_then_by_arrival() -> None:
    line = line_of(most=9)
    low, first, second, high = waiter(priority=-1), waiter(), waiter(), waiter(priority=1)
    for one in (low, first, second, high):
        assert line.join(one) is None
    assert [line.next() for _ in range(5)] == [high, first, second, low, None]


def test_a_full_line_turns_the_newcomer_away_or_somebody_of_less_priority() -> None:
    line = line_of(most=2)
    old, low = waiter(), waiter(priority=-1)
    assert (line.join(old), line.join(low)) == (None, None)
    same = waiter(priority=-1)
    assert line.join(same) is same
    newcomer = waiter()
    assert line.join(newcomer) is low
    assert list(line) == [old, newcomer]
    assert line.waiting == 2


def test_a_newcomer_does_not_overtake_who_waits() -> None:
    line = line_of(limit=2)
    line.take()
    assert line.is_free
    line.join(waiter())
    assert line.has_room
    assert not line.is_free


def test_the_time_of_a_load_is_no_time_in_the_queue() -> None:
    line = line_of(longest_s=10)
    early, hurried = waiter(since=0, load_by=60), waiter(since=5, load_by=65, leave_by=20)
    line.join(early)
    line.join(hurried)
    assert line.next_due(None) == 20
    assert line.overdue(20, None) == [hurried]
    assert line.next_due(None) == 60
    assert line.next_due(50) == 60
    assert line.overdue(59, 50) == []
    assert line.overdue(60, 50) == [early]
    assert line.next_due(50) is None


def test_the_expected_wait_grows_with_the_queue() -> None:
    line = line_of(limit=2, most=9)
    assert line.expected_wait_s == 0
    for _ in range(3):
        line.take()
    line.leave(4.0)
    assert line.expected_wait_s == 2.0, "one of two slots comes free each two seconds"
    line.join(waiter())
    assert line.expected_wait_s == 4.0
    line.leave(None)
    assert line.hold_s == 4.0, "a slot that was not used tells nothing"


OPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "serve", "leave", "drop", "time"]),
        st.integers(-1, 1),
        st.floats(0, 20),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(ops=OPS, limit=st.integers(1, 3), most=st.integers(1, 5))
def test_nobody_is_lost_and_everybody_ends_once(
    ops: list[tuple[str, int, float]], limit: int, most: int
) -> None:
    line = line_of(limit, most, longest_s=15)
    now = 0.0
    came: list[Waiter] = []
    ended: list[Waiter] = []
    taken = 0
    for what, priority, number in ops:
        if what == "join":
            one = waiter(now, priority, leave_by=now + number)
            came.append(one)
            away = line.join(one)
            if away is not None:
                assert away is one or away.priority < priority
                ended.append(away)
        elif what == "serve" and line.has_room and (found := line.next()) is not None:
            assert all(other.priority <= found.priority for other in line)
            line.take()
            taken += 1
            ended.append(found)
        elif what == "leave" and line.in_flight:
            line.leave(number)
            taken -= 1
        elif what == "drop" and line.waiting:
            dropped = next(iter(line))
            line.drop(dropped)
            line.drop(dropped)
            ended.append(dropped)
        elif what == "time":
            now += number
            gone = line.overdue(now, 0.0)
            assert all(now >= min(one.since + 15, one.leave_by) for one in gone)
            ended += gone
        assert 0 <= line.in_flight == taken <= limit
        assert line.waiting == len(list(line)) <= most
        assert len(ended) == len(set(ended))
        assert set(ended) | set(line) == set(came)
        due = line.next_due(0.0)
        assert (due is None) == (not line.waiting)


@pytest.mark.parametrize(
    ("sent", "queued", "told", "sent_then", "total"),
    [
        (3, 2, None, 0, (3, 2)),
        (2, 0, EngineLoad(2, 0), 2, (2, 0)),
        (0, 0, EngineLoad(4, 3), 0, (4, 3)),  # others' requests alone
        (1, 5, EngineLoad(4, 3), 1, (4, 8)),
        (9, 0, EngineLoad(4, 5), 9, (4, 5)),  # all ours; five wait inside
        (0, 0, EngineLoad(2, 7), 9, (0, 0)),  # what was ours has ended meanwhile
        (3, 0, EngineLoad(0, 0), 0, (3, 0)),  # sent after it told
    ],
)
def test_the_load_counts_what_others_sent(
    sent: int, queued: int, told: EngineLoad | None, sent_then: int, total: tuple[int, int]
) -> None:
    found = total_load(sent=sent, queued=queued, told=told, sent_then=sent_then)
    assert (found.running, found.waiting) == total
