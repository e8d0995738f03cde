"""How long to wait before the next try."""

from __future__ import annotations

from random import Random


def backoff_s(failures: int, rng: Random, *, first_s: float = 10.0, most_s: float = 300.0) -> float:
    """Return `min(first · 2^(failures − 1), most)` seconds, spread by ± 20 %.

    Args:
        failures: how many tries in a row have failed, at least 1.
        rng: source of the spread, so that many waiters do not return at once.
        first_s: the wait after the first failure.
        most_s: the longest wait, before the spread.
    """
    exponent = min(max(failures, 1) - 1, 30)
    wait_s: float = min(first_s * 2**exponent, most_s)
    return wait_s * rng.uniform(0.8, 1.2)
