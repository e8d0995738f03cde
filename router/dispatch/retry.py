"""How many further attempts a process may make: a share of its requests.

So a storm of failures is not doubled by our own.
"""

from __future__ import annotations


class RetryBudget:
    """Further attempts as a share of requests, with a reserve for quiet times. Pure.

    With the defaults a router sends at most 20 % more than it was asked, whatever fails.
    """

    def __init__(self, *, share: float = 0.2, reserve: float = 20.0) -> None:
        """Start with the reserve.

        Args:
            share: further attempts per request.
            reserve: the most that is saved up.
        """
        self._share = share
        self._reserve = reserve
        self._left = reserve

    def earn(self) -> None:
        """Note a request."""
        self._left = min(self._reserve, self._left + self._share)

    def spend(self) -> bool:
        """Take one further attempt; tell whether there was one left."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
