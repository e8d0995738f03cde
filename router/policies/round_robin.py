"""Each in turn, whatever it has to do."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from router.domain import Candidate, Ranked, RequestFacts
from router.policies import POLICIES
from router.ports import RoutingPolicy


@POLICIES.register("round_robin")
class RoundRobin(RoutingPolicy):
    """Sound before suspect, then by priority; siblings take turns."""

    def __init__(self, rng: Random) -> None:
        """Take a source of chance, as every policy does; turns need none."""
        del rng
        self._turn = 0

    def rank(self, facts: RequestFacts, candidates: Sequence[Candidate]) -> Sequence[Ranked]:
        """See `RoutingPolicy.rank`."""
        self._turn += 1
        start = self._turn % len(candidates) if candidates else 0
        turned = sorted(candidates, key=lambda each: each.deployment.endpoint.id)
        turned = [*turned[start:], *turned[:start]]
        turned.sort(key=lambda each: (each.is_suspect, each.deployment.priority))
        return [Ranked(candidate, "round-robin") for candidate in turned]
