"""The breaker: when it opens, whom it spares, and how it closes again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.breaker import Breaker, BreakerRule, Breakers, Fault, allows, begin, fail

RULE = BreakerRule(failures=3, first_s=2, most_s=10, trial_s=5)


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def breakers(now: Now) -> Breakers:
    return Breakers(now, RULE)


def break_it(breakers: Breakers, fault: Fault = Fault.MODEL, model: str = "bad") -> None:
    for _ in range(RULE.failures):
        breakers.begin("e", model)
        breakers.end("e", model, fault)


def test_a_bad_model_does_not_take_its_siblings_down(breakers: Breakers) -> None:
    break_it(breakers)
    assert breakers.wait_s("e", "bad") == 2
    assert breakers.wait_s("e", "good") is None
    assert breakers.wait_s("other", "bad") is None


def test_an_endpoint_that_is_not_reached_is_spared_as_a_whole(breakers: Breakers) -> None:
    break_it(breakers, Fault.ENDPOINT)
    assert breakers.wait_s("e", "bad") == 2
    assert breakers.wait_s("e", "good") == 2


def test_a_success_between_failures_keeps_it_closed(breakers: Breakers) -> None:
    for fault in (Fault.MODEL, Fault.MODEL, Fault.NONE, Fault.MODEL, Fault.MODEL):
        breakers.end("e", "m", fault)
    assert breakers.wait_s("e", "m") is None


def test_half_open_lets_one_trial_through(breakers: Breakers, now: Now) -> None:
    break_it(breakers)
    now.s += 2
    assert breakers.wait_s("e", "bad") is None
    breakers.begin("e", "bad")
    assert breakers.wait_s("e", "bad") == 0
    breakers.end("e", "bad", Fault.NONE)
    assert breakers.wait_s("e", "bad") is None
    assert len(breakers) == 0


def test_a_failed_trial_opens_it_for_longer(breakers: Breakers, now: Now) -> None:
    break_it(breakers)
    waits = []
    for _ in range(4):
        now.s += 100
        breakers.begin("e", "bad")
        breakers.end("e", "bad", Fault.MODEL)
        waits.append(breakers.wait_s("e", "bad"))
    assert waits == [4, 8, 10, 10]


def test_a_trial_whose_client_leaves_makes_room_for_the_next(breakers: Breakers, now: Now) -> None:
    break_it(breakers)
    now.s += 2
    breakers.begin("e", "bad")
    breakers.end("e", "bad", None)
    assert breakers.wait_s("e", "bad") is None


def test_a_trial_that_hangs_does_not_block_for_ever(breakers: Breakers, now: Now) -> None:
    break_it(breakers)
    now.s += 2
    breakers.begin("e", "bad")
    now.s += RULE.trial_s
    assert breakers.wait_s("e", "bad") is None


def test_a_model_that_answers_badly_proves_that_its_endpoint_is_there(breakers: Breakers) -> None:
    breakers.end("e", "m", Fault.ENDPOINT)
    breakers.end("e", "m", Fault.ENDPOINT)
    breakers.end("e", "m", Fault.MODEL)
    breakers.end("e", "m", Fault.ENDPOINT)
    assert breakers.wait_s("e", "m") is None


def test_an_endpoint_that_begins_anew_is_trusted(breakers: Breakers) -> None:
    break_it(breakers)
    break_it(breakers, Fault.ENDPOINT)
    breakers.forget("e")
    assert len(breakers) == 0


def test_late_failures_of_requests_sent_before_change_nothing() -> None:
    opened = Breaker(failures=3, openings=1, open_until=102.0)
    assert fail(opened, 101.0, RULE) == opened


@given(st.lists(st.tuples(st.sampled_from(["begin", "ok", "fail", "wait"]), st.floats(0, 20))))
def test_it_never_stays_shut_for_longer_than_the_rule(steps: list[tuple[str, float]]) -> None:
    breaker, now = Breaker(), 0.0
    for step, wait in steps:
        now += wait
        if step == "begin" and allows(breaker, now, RULE):
            breaker = begin(breaker, now)
        elif step == "ok":
            breaker = Breaker()
        elif step == "fail":
            breaker = fail(breaker, now, RULE)
        assert allows(breaker, now + RULE.most_s + RULE.trial_s, RULE)
