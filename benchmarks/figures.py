"""What is measured, and the budgets that it is held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

DIRECT = "direct"
ROUTER = "router"
ROUTER_LARGE = "router, 10,000 models"
ROUTER_PAIR = "router, 2 processes"
VARIANTS = (ROUTER_LARGE, ROUTER_PAIR)
AGENT = "agent"
REFERENCE = "vllm-router"
LITELLM = "litellm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One column of the table."""

    key: str
    label: str
    unit: str
    digits: int = 0


FIGURES: tuple[Figure, ...] = (
    Figure(key="added_p50", label="added latency p50, c1", unit="ms", digits=2),
    Figure(key="added_p99", label="added latency p99, c1", unit="ms", digits=2),
    Figure(key="cpu_small", label="CPU per request, c16", unit="µs"),
    Figure(key="cpu_big", label="CPU per request, 100 KB prompt, c16", unit="µs"),
    Figure(key="cpu_chunk", label="CPU per chunk, 300 streams", unit="µs"),
    Figure(key="late", label="event loop late by over 10 ms, 300 streams", unit="%", digits=1),
    Figure(key="lost", label="of 1,000 streams lost", unit="streams"),
    Figure(key="rate", label="their chunk rate against direct", unit="%", digits=1),
    Figure(key="lag_p99", label="their lag p99", unit="ms", digits=1),
    Figure(key="rss_idle", label="RSS idle", unit="MB"),
    Figure(key="rss_after", label="RSS after the 1,000 streams", unit="MB"),
    Figure(key="start", label="start to first 200", unit="s", digits=2),
)
BY_KEY = {figure.key: figure for figure in FIGURES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of one figure; a ratio is taken against the reference in the same round.

    `first` and `first_ratio` are the first step's: absolute, and the same as a ratio in the run
    that the budgets were written from. `final` and `final_ratio` come later.
    """

    key: str
    first: float | None = None
    first_ratio: float | None = None
    final: float | None = None
    final_ratio: float | None = None
    is_least: bool = False
    of: str = ROUTER
    against: str = REFERENCE

    def holds(self, value: float | None, limit: float | None) -> bool | None:
        """Tell whether a value keeps to a limit; None if there is no value or no limit."""
        if value is None or limit is None:
            return None
        return value >= limit if self.is_least else value <= limit


BUDGETS: tuple[Budget, ...] = (
    Budget(key="added_p50", first=0.5, first_ratio=1.67, final_ratio=1.15),
    Budget(key="added_p99", first=0.9, first_ratio=2.14, final_ratio=1.2),
    Budget(key="cpu_small", first=230, first_ratio=1.85, final_ratio=1.0),
    Budget(key="cpu_small", final_ratio=0.01, against=LITELLM),
    Budget(key="cpu_big", first=450, first_ratio=1.44, final_ratio=1.05),
    Budget(key="cpu_chunk", first=80, first_ratio=1.6, final_ratio=1.2),
    # Looks at the loop, ten a second; a machine that is shared is late now and then by itself.
    Budget(key="late", final=1.0),
    Budget(key="lost", first=0, final=0),
    Budget(key="rate", final=99, is_least=True),
    Budget(key="lag_p99", final_ratio=2.0),
    Budget(key="rss_idle", first=60, final=55),
    Budget(key="rss_after", first=100, final=80),
    Budget(key="start", first=1.0, final=0.6),
    # Flat, with what the measurement itself varies by.
    Budget(key="cpu_small", final_ratio=1.1, of=ROUTER_LARGE, against=ROUTER),
    # 0.85 of the throughput per core that one process has.
    Budget(key="cpu_small", final_ratio=1.18, of=ROUTER_PAIR, against=ROUTER),
)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds with the least and the greatest value."""

    middle: float
    least: float
    most: float


@dataclass(slots=True)
class Results:
    """All values by target, figure and round, with what went wrong on the way."""

    values: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, target: str, key: str, round_number: int, value: float) -> None:
        """Keep one value."""
        self.values.setdefault((target, key), {})[round_number] = value

    def spread(self, target: str, key: str) -> Spread | None:
        """Return the median and the range over the rounds, or None if nothing was measured."""
        values = sorted(self.values.get((target, key), {}).values())
        return Spread(median(values), values[0], values[-1]) if values else None

    def ratio(self, target: str, against: str, key: str) -> float | None:
        """Return the median of the ratios in the rounds that measured both, or None."""
        ours, theirs = (self.values.get((name, key), {}) for name in (target, against))
        ratios = [ours[n] / theirs[n] for n in ours.keys() & theirs.keys() if theirs[n] > 0]
        return median(ratios) if ratios else None

    def targets(self, names: Sequence[str]) -> list[str]:
        """Return those of the names that were measured, in their order."""
        measured = {target for target, _ in self.values}
        return [name for name in names if name in measured]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One row of the budget table; None stands for: no limit, or nothing to compare with."""

    budget: Budget
    value: float | None
    ratio: float | None

    @property
    def is_first_met(self) -> bool | None:
        """Tell whether the first step's absolute limit holds."""
        return self.budget.holds(self.value, self.budget.first)

    @property
    def is_first_ratio_met(self) -> bool | None:
        """Tell whether the first step's limit holds as a ratio."""
        return self.budget.holds(self.ratio, self.budget.first_ratio)

    @property
    def is_final_met(self) -> bool | None:
        """Tell whether the final limit holds: the ratio where there is one."""
        if self.budget.final_ratio is not None:
            return self.budget.holds(self.ratio, self.budget.final_ratio)
        return self.budget.holds(self.value, self.budget.final)


def judge(results: Results, budgets: Iterable[Budget] = BUDGETS) -> list[Verdict]:
    """Hold the results against the budgets."""
    verdicts = []
    for budget in budgets:
        spread = results.spread(budget.of, budget.key)
        verdicts.append(
            Verdict(
                budget=budget,
                value=spread.middle if spread else None,
                ratio=results.ratio(budget.of, budget.against, budget.key),
            )
        )
    return verdicts
