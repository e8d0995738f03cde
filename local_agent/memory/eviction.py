"""Who makes room: the cheapest set of workers that frees enough. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from local_agent.domain import ModelId

_EXACT_UP_TO = 12
_LEAST_RATE = 0.01
"""Requests per minute of a model that nobody asks for: what is slow to load still costs more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A worker that holds memory.

    `age_s` is how long it has been ready; None: it is not ready, so there is nothing to evict yet.
    """

    model: ModelId
    memory_mb: int
    age_s: float | None
    is_busy: bool = False
    is_pinned: bool = False
    reload_s: float = 0.0
    recent_rate: float = 0.0
    weight: float = 1.0

    @property
    def cost(self) -> float:
        """Return what it costs to be without it: `reload_s x recent_rate x weight`."""
        return self.reload_s * max(self.recent_rate, _LEAST_RATE) * self.weight

    def is_settled(self, min_residency_s: float) -> bool:
        """Tell whether it has been there for long enough, and nothing keeps it."""
        return not self.is_pinned and self.age_s is not None and self.age_s >= min_residency_s


def choose_evicted(
    need_mb: int,
    residents: Iterable[Resident],
    *,
    min_residency_s: float,
    may_be_busy: bool = False,
) -> tuple[ModelId, ...] | None:
    """Return the cheapest workers whose end frees `need_mb`; None if all of them do not.

    Never one that is pinned, not ready, or younger than `min_residency_s`; a busy one only with
    `may_be_busy`, for which the caller has to let it finish its work first. Up to 12 workers that
    may go the set is the cheapest there is, beyond that a good one; no member of it can be spared.
    """
    if need_mb <= 0:
        return ()
    able = [
        resident
        for resident in residents
        if resident.is_settled(min_residency_s) and (may_be_busy or not resident.is_busy)
    ]
    if sum(resident.memory_mb for resident in able) < need_mb:
        return None
    chosen = _cheapest(need_mb, able) if len(able) <= _EXACT_UP_TO else _greedy(need_mb, able)
    return tuple(resident.model for resident in chosen)


def _cheapest(need_mb: int, able: Sequence[Resident]) -> Sequence[Resident]:
    return min(_enough(need_mb, able), key=_price)


def _enough(need_mb: int, able: Sequence[Resident]) -> Iterator[tuple[Resident, ...]]:
    for count in range(1, len(able) + 1):
        for group in combinations(able, count):
            if sum(resident.memory_mb for resident in group) >= need_mb:
                yield group


def _price(group: Sequence[Resident]) -> tuple[float, int, int]:
    """Compare by cost; then fewer, then less memory thrown away."""
    freed_mb = sum(resident.memory_mb for resident in group)
    return (sum(resident.cost for resident in group), len(group), freed_mb)


def _greedy(need_mb: int, able: Sequence[Resident]) -> Sequence[Resident]:
    """Take the cheapest per MiB until it is enough, then spare, dearest first, who is not needed."""
    chosen: list[Resident] = []
    for resident in sorted(able, key=lambda one: one.cost / max(one.memory_mb, 1)):
        if sum(one.memory_mb for one in chosen) >= need_mb:
            break
        chosen.append(resident)
    for resident in sorted(chosen, key=lambda one: -one.cost):
        rest = [one for one in chosen if one is not resident]
        if sum(one.memory_mb for one in rest) >= need_mb:
            chosen = rest
    return chosen
