"""Who holds how much memory. Its sum never passes the budget."""

from __future__ import annotations

from collections.abc import Mapping

from local_agent.domain import ModelId


class Ledger:
    """Reservations in MiB, one per worker that starts, loads, serves, drains or stops."""

    def __init__(self, budget_mb: int) -> None:
        """Take what all of them together may hold."""
        self._budget_mb = budget_mb
        self._held: dict[ModelId, int] = {}
        self._left: dict[str, int] = {}

    @property
    def budget_mb(self) -> int:
        """Return the budget; after a change it may be under what is held already."""
        return self._budget_mb

    @property
    def held(self) -> Mapping[ModelId, int]:
        """Return the reservations."""
        return self._held

    @property
    def left_mb(self) -> int:
        """Return what workers hold that have ended, but not all of them: it is nobody's to give."""
        return sum(self._left.values())

    @property
    def held_mb(self) -> int:
        """Return the sum of all reservations, and of what was left."""
        return sum(self._held.values()) + self.left_mb

    @property
    def free_mb(self) -> int:
        """Return what can be reserved now."""
        return max(0, self._budget_mb - self.held_mb)

    @property
    def peak_mb(self) -> int:
        """Return the largest peak with which a model is let in again: what did run is not too big for ever."""
        return self._budget_mb * 100 // 106  # the estimate adds a twentieth

    def set_budget(self, budget_mb: int) -> None:
        """Take another budget; what is held stays, nothing more is given until it fits."""
        self._budget_mb = budget_mb

    def reserve(self, model: ModelId, mb: int) -> bool:
        """Hold `mb` for a model that holds nothing; tell whether there was room."""
        if mb < 0 or model in self._held or mb > self.free_mb:
            return False
        self._held[model] = mb
        return True

    def grow(self, model: ModelId, mb: int) -> bool:
        """Raise a reservation to what was measured, as far as there is room; tell whether it fits."""
        held = self._held.get(model)
        if held is None:
            return False
        self._held[model] = held + min(max(0, mb - held), self.free_mb)
        return self._held[model] >= mb

    def release(self, model: ModelId) -> None:
        """Give back what a model holds, if anything."""
        self._held.pop(model, None)

    def leave(self, model: ModelId, name: str, mb: int | None = None) -> None:
        """Keep what a model holds, or `mb` of it, under another name: its worker has ended, the memory not.

        The model may be loaded anew beside it.
        """
        held = self._held.pop(model, 0)
        kept = held if mb is None else min(held, mb)
        if kept > 0:
            self._left[name] = self._left.get(name, 0) + kept

    def inherit(self, name: str, mb: int) -> None:
        """Keep `mb` for what an earlier agent left, even where that is more than there is."""
        if mb > 0:
            self._left[name] = mb

    def recover(self, name: str) -> None:
        """Give back what was left under this name."""
        self._left.pop(name, None)
