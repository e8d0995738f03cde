"""Endpoints that asked to be left alone (`retry-after`), and until when."""

from __future__ import annotations

from dataclasses import dataclass

from shared.kit.clock import Clock

# An upstream may name any time; after this it is asked again whether it still means it.
_LONGEST_S = 60.0
# Prefix rules let clients name any model, so there may be any number of them.
_MOST = 1024


@dataclass(frozen=True, slots=True)
class Rest:
    """For how long, in seconds, and whether it refuses everybody (429) or just asks (503)."""

    left_s: float
    is_binding: bool


class Rests:
    """One entry per model on an endpoint that rests. Methods never await, so each is atomic."""

    def __init__(self, clock: Clock) -> None:
        """Time with `clock`, a monotonic one."""
        self._clock = clock
        self._until: dict[tuple[str, str], tuple[float, bool]] = {}

    def __len__(self) -> int:
        """Return how many are noted, over or not."""
        return len(self._until)

    def ask(self, endpoint: str, model: str, seconds: float, *, is_binding: bool) -> None:
        """Note what an endpoint asked for."""
        now = self._clock()
        if len(self._until) >= _MOST and (endpoint, model) not in self._until:
            self._make_room(now)
        self._until[endpoint, model] = now + min(seconds, _LONGEST_S), is_binding

    def of(self, endpoint: str, model: str) -> Rest | None:
        """Return the rest of a model on an endpoint; None if it takes requests."""
        found = self._until.get((endpoint, model))
        if found is None:
            return None
        left_s = found[0] - self._clock()
        if left_s <= 0:
            del self._until[endpoint, model]
            return None
        return Rest(left_s, found[1])

    def forget(self, endpoint: str) -> None:
        """Drop what an endpoint asked for: it began anew."""
        for key in [key for key in self._until if key[0] == endpoint]:
            del self._until[key]

    def _make_room(self, now: float) -> None:
        """Drop what is over, and if nothing is, what ends first."""
        for key in [key for key, (until, _) in self._until.items() if until <= now]:
            del self._until[key]
        if len(self._until) >= _MOST:
            del self._until[min(self._until, key=self._until.__getitem__)]
