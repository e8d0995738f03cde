"""The best priority that is there; siblings of one priority in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from router.domain import Candidate, Ranked, RequestFacts
from router.policies import POLICIES
from router.ports import RoutingPolicy


@POLICIES.register("priority")
class Priority(RoutingPolicy):
    """Sound before suspect, then by priority, then by name: the second serves only if the first can't."""

    def __init__(self, rng: Random) -> None:
        """Take a source of chance, as every policy does; an order needs none."""
        del rng

    def rank(self, facts: RequestFacts, candidates: Sequence[Candidate]) -> Sequence[Ranked]:
        """See `RoutingPolicy.rank`."""
        order = sorted(
            candidates,
            key=lambda each: (
                each.is_suspect,
                each.deployment.priority,
                each.deployment.endpoint.id,
            ),
        )
        return [Ranked(candidate, "priority") for candidate in order]
