"""The less loaded of two picked at random: nearly as even as looking at all, and no herd.

Several routers that all pick the endpoint with the least to do pick the same one; two random picks
spread them (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from random import Random

from router.domain import Candidate, Ranked, RequestFacts
from router.policies import POLICIES
from router.ports import RoutingPolicy


@POLICIES.register("power_of_two")
class PowerOfTwo(RoutingPolicy):
    """Sound before suspect, then by priority; among siblings the less loaded of two random ones."""

    def __init__(self, rng: Random) -> None:
        """Take the source of chance."""
        self._rng = rng

    def rank(self, facts: RequestFacts, candidates: Sequence[Candidate]) -> Sequence[Ranked]:
        """See `RoutingPolicy.rank`."""
        if len(candidates) == 1:
            return (Ranked(candidates[0], "only"),)
        order = list(candidates)
        if len(order) > 2:
            self._rng.shuffle(order)
        elif self._rng.random() < 0.5:
            order.reverse()
        order.sort(key=_class)
        is_alone = len(order) < 2 or _class(order[0]) != _class(order[1])
        if not is_alone and _load(order[1]) < _load(order[0]):
            order[0], order[1] = order[1], order[0]
        return [Ranked(each, "priority" if is_alone else "power-of-two") for each in order]


_class = attrgetter("is_suspect", "deployment.priority")


def _load(candidate: Candidate) -> float:
    """Return the requests that one of weight 1 would have, this one included."""
    load = candidate.load.in_flight + candidate.load.queued + 1
    return load / max(candidate.deployment.weight, 1e-9)
