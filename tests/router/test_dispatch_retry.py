"""How many further attempts there are, and how long who asked for a pause is left alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.dispatch.retry import RetryBudget
from router.fleet.rests import Rests


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def test_the_reserve_is_spent_and_earned_again() -> None:
    budget = RetryBudget(share=0.25, reserve=2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(3):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]


@given(st.lists(st.booleans(), max_size=300), st.floats(0, 1), st.integers(0, 30))
def test_it_never_spends_more_than_reserve_and_share(
    asks: list[bool], share: float, reserve: int
) -> None:
    budget, earned, spent = RetryBudget(share=share, reserve=reserve), 0, 0
    for is_request in asks:
        if is_request:
            budget.earn()
            earned += 1
        else:
            spent += budget.spend()
    assert spent <= reserve + share * earned + 1e-6


def test_a_pause_is_over_when_it_is() -> None:
    now = Now()
    rests = Rests(now)
    rests.ask("e", "m", 5, is_binding=True)
    assert rests.of("e", "other") is None
    found = rests.of("e", "m")
    assert found is not None
    assert (found.left_s, found.is_binding) == (5, True)
    now.s += 5
    assert rests.of("e", "m") is None
    assert len(rests) == 0


def test_nobody_is_left_alone_for_longer_than_a_minute() -> None:
    rests = Rests(Now())
    rests.ask("e", "m", 86_400, is_binding=True)
    found = rests.of("e", "m")
    assert found is not None
    assert found.left_s == 60


def test_the_last_word_counts_and_an_endpoint_that_begins_anew_has_none() -> None:
    rests = Rests(Now())
    rests.ask("e", "m", 30, is_binding=True)
    rests.ask("e", "m", 2, is_binding=False)
    found = rests.of("e", "m")
    assert found is not None
    assert (found.left_s, found.is_binding) == (2, False)
    rests.ask("other", "m", 2, is_binding=False)
    rests.forget("e")
    assert rests.of("e", "m") is None
    assert rests.of("other", "m") is not None


def test_what_is_noted_is_bounded_and_what_ends_first_goes_first() -> None:
    now = Now()
    rests = Rests(now)
    for number in range(3000):
        rests.ask("e", str(number), 1 + number / 100, is_binding=False)
    assert len(rests) <= 1024
    assert rests.of("e", "2999") is not None
    assert rests.of("e", "0") is None
