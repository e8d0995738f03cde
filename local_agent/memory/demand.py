"""Which models are asked for, and whose turn it is to get memory. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from local_agent.domain import ModelId

_KEPT_S = 60.0


@dataclass(slots=True)
class Demand:
    """That a model should be loaded.

    `since` is when it began to wait for memory, `request_id` who began it. Nobody has to wait for it
    until `kept_until`; `is_lasting`: until it is taken back.
    """

    since: float
    request_id: str | None = None
    kept_until: float = -math.inf
    is_lasting: bool = False


class Demands:
    """One demand per model that is asked for, loaded or not. Times: the agent's monotonic clock."""

    def __init__(self) -> None:
        """Ask for nothing."""
        self._by_model: dict[ModelId, Demand] = {}

    def __contains__(self, model: ModelId) -> bool:
        """Tell whether the model is asked for."""
        return model in self._by_model

    def __iter__(self) -> Iterator[ModelId]:
        """Iterate over the models, in the order in which they were asked for first."""
        return iter(tuple(self._by_model))

    def get(self, model: ModelId) -> Demand | None:
        """Return the model's demand; None if there is none."""
        return self._by_model.get(model)

    def ask(
        self, model: ModelId, now: float, request_id: str | None = None, *, is_standing: bool
    ) -> bool:
        """Ask for a model; tell whether that is news. `is_standing`: for a minute at least."""
        is_news = model not in self._by_model
        demand = self._by_model.setdefault(model, Demand(now, request_id))
        if is_standing:
            demand.kept_until = now + _KEPT_S
        return is_news

    def last(self, model: ModelId, now: float) -> None:
        """Ask for a model until it is taken back."""
        self.ask(model, now, is_standing=False)
        self._by_model[model].is_lasting = True

    def restart(self, model: ModelId, now: float) -> None:
        """Begin anew to wait for memory: what it had is gone."""
        if model in self._by_model:
            self._by_model[model].since = now

    def drop(self, model: ModelId) -> None:
        """Take it back."""
        self._by_model.pop(model, None)

    def keep(self, known: Mapping[ModelId, object]) -> None:
        """Take back what is not known any more."""
        self._by_model = {model: it for model, it in self._by_model.items() if model in known}

    def is_over(self, model: ModelId, now: float) -> bool:
        """Tell whether it may be taken back, if nobody waits for it."""
        demand = self._by_model[model]
        return demand.kept_until < now and not demand.is_lasting

    def is_starving(self, model: ModelId, now: float, limit_s: float) -> bool:
        """Tell whether it has waited for memory for so long that others have to make room."""
        return now >= self._by_model[model].since + limit_s

    def in_turn(
        self,
        claims: Iterable[ModelId],
        priorities: Mapping[ModelId, int],
        now: float,
        limit_s: float,
    ) -> list[ModelId]:
        """Return the claims in their turn: who starves, then by priority; else as they came."""

        def turn(model: ModelId) -> tuple[bool, int]:
            is_starving = self.is_starving(model, now, limit_s)
            return not is_starving, 0 if is_starving else -priorities[model]

        return sorted(claims, key=turn)
