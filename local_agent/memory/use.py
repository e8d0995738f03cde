"""How a model is used: what the choice of who goes depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

RATE_TAU_S = 300.0


@dataclass(slots=True)
class Use:
    """Requests of one model; `rate` is requests per minute at `at`, and fades from then on."""

    at: float = -math.inf
    rate: float = 0.0
    idle_since: float = -math.inf
    waiters: int = 0

    def faded(self, now: float) -> float:
        """Return the requests per minute of late: what is long ago counts little."""
        return self.rate * math.exp((self.at - now) / RATE_TAU_S) if self.rate else 0.0
