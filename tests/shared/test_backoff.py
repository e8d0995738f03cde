"""Waits between tries."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.kit.backoff import backoff_s


class Middle(Random):
    """Spreads nothing."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


@pytest.mark.parametrize(
    ("failures", "expected_s"), [(0, 10), (1, 10), (2, 20), (3, 40), (5, 160), (6, 300), (99, 300)]
)
def test_doubles_up_to_the_most(failures: int, expected_s: float) -> None:
    assert backoff_s(failures, Middle()) == pytest.approx(expected_s)


@given(
    failures=st.integers(min_value=-5, max_value=10_000),
    seed=st.integers(),
    first_s=st.floats(min_value=0.001, max_value=100),
    most_s=st.floats(min_value=0.001, max_value=1000),
)
def test_stays_within_a_fifth_of_the_plan(
    failures: int, seed: int, first_s: float, most_s: float
) -> None:
    waited_s = backoff_s(failures, Random(seed), first_s=first_s, most_s=most_s)
    plan_s = min(first_s * 2 ** min(max(failures, 1) - 1, 30), most_s)
    assert plan_s * 0.8 * 0.999 <= waited_s <= plan_s * 1.2 * 1.001
