"""The endpoint with the least to do, among those of the best priority."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from router.domain import Candidate, Ranked, RequestFacts
from router.policies import POLICIES
from router.ports import RoutingPolicy


@POLICIES.register("least_in_flight")
class LeastInFlight(RoutingPolicy):
    """Sound before suspect, then by priority, then by load per weight; ties are broken at random."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def rank(self, facts: RequestFacts, candidates: Sequence[Candidate]) -> Sequence[Ranked]:
        """See `RoutingPolicy.rank`."""
        if len(candidates) == 1:
            return (Ranked(candidates[0], "only"),)
        order = sorted(candidates, key=self._cost)
        return [Ranked(candidate, "least-in-flight") for candidate in order]

    def _cost(self, candidate: Candidate) -> tuple[bool, int, float, float]:
        load = candidate.load.in_flight + candidate.load.queued
        deployment = candidate.deployment
        weight = max(deployment.weight, 1e-9)
        return candidate.is_suspect, deployment.priority, load / weight, self._rng.random()
