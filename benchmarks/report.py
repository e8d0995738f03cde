"""The report: tables in Markdown, and the generated part of docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import (
    BY_KEY,
    FIGURES,
    ROUTER,
    ROUTER_LARGE,
    ROUTER_PAIR,
    VARIANTS,
    Figure,
    Results,
    Spread,
    Verdict,
    judge,
)
from benchmarks.machine import ROOT
from benchmarks.plot import draw
from benchmarks.processes import BenchError
from benchmarks.targets import Missing

PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "assets" / "performance.svg"
BEGIN = "<!-- bench: begin. Written by `make bench`; what stands in between is replaced. -->"
END = "<!-- bench: end -->"
_NOTHING = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the report says about the run itself."""

    date: str
    machine: str
    commit: str
    pinning: str
    rounds: int
    seconds: float
    names: Sequence[str]
    missing: Sequence[Missing] = ()


def render(results: Results, run: Run, *, plot: str | None = None) -> str:
    """Return the whole report in Markdown; `plot` is the picture's address."""
    preface = (
        f"Measured {run.date} at commit {run.commit}: {run.machine}; {run.pinning}; "
        f"rounds: {run.rounds}, {run.seconds:g} s per load, one gateway process. "
        "Cells: median [least–greatest round]."
    )
    parts = [
        preface,
        figure_table(results, run.names),
        "Registry size: "
        + _beside(results, ROUTER_LARGE, "with 1 model", "with 10,000 models on 1,000 endpoints"),
        "Processes: "
        + _beside(
            results, ROUTER_PAIR, "of one process", "of two that share the port (on the same core)"
        ),
        budget_table(judge(results)),
    ]
    if plot:
        parts.append(f"![The figures of all targets, on logarithmic axes]({plot})")
    if run.missing:
        absent = "; ".join(f"{one.name} ({one.reason})" for one in run.missing)
        parts.append(f"Not measured, for it is not installed: {absent}.")
    if results.notes:
        parts.append("What went wrong on the way:\n\n" + "\n".join(map(_note, results.notes)))
    return "\n\n".join(parts) + "\n"


def figure_table(results: Results, names: Sequence[str]) -> str:
    """Return the table of all targets: a row per figure, for targets are fewer."""
    shown = [name for name in results.targets(names) if name not in VARIANTS]
    lines = ["| " + " | ".join(["figure", *shown]) + " |", "|---" * (len(shown) + 1) + "|"]
    for figure in FIGURES:
        cells = [cell(figure, results.spread(name, figure.key)) for name in shown]
        lines.append("| " + " | ".join([f"{figure.label}, {figure.unit}", *cells]) + " |")
    return "\n".join(lines)


def cell(figure: Figure, spread: Spread | None) -> str:
    """Return one cell: the median, and the range unless it looks the same."""
    if spread is None:
        return _NOTHING
    middle, least, most = (
        f"{value:,.{figure.digits}f}" for value in (spread.middle, spread.least, spread.most)
    )
    return middle if least == most else f"{middle} [{least}–{most}]"


def budget_table(verdicts: Sequence[Verdict]) -> str:
    """Return the table of budgets: a row per verdict."""
    lines = [
        "| figure | measured | first step | met | ratio | first step as ratio | met | final | met |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += ["| " + " | ".join(_budget_cells(verdict)) + " |" for verdict in verdicts]
    return "\n".join(lines)


def _budget_cells(verdict: Verdict) -> list[str]:
    budget = verdict.budget
    figure = BY_KEY[budget.key]
    sign = "≥" if budget.is_least else "≤"
    label = figure.label if budget.of == ROUTER else f"{figure.label}, {budget.of}"
    against = f" × {budget.against}"
    final = _limit(sign, budget.final_ratio, against) or _limit(sign, budget.final, figure.unit)
    return [
        label,
        (
            f"{verdict.value:,.{figure.digits}f} {figure.unit}"
            if verdict.value is not None
            else _NOTHING
        ),
        _limit(sign, budget.first, figure.unit) or _NOTHING,
        _yes(verdict.is_first_met),
        _ratio(verdict, against),
        _limit(sign, budget.first_ratio, against) or _NOTHING,
        _yes(verdict.is_first_ratio_met),
        final or _NOTHING,
        _yes(verdict.is_final_met),
    ]


def _limit(sign: str, limit: float | None, unit: str) -> str:
    return "" if limit is None else f"{sign} {limit:g} {unit.strip()}"


def _ratio(verdict: Verdict, against: str) -> str:
    is_asked = verdict.budget.first_ratio or verdict.budget.final_ratio
    if verdict.ratio is None or not is_asked:
        return _NOTHING
    digits = 3 if verdict.ratio < 0.1 else 2
    return f"{verdict.ratio:.{digits}f}{against}"


def _yes(is_met: bool | None) -> str:
    return _NOTHING if is_met is None else "yes" if is_met else "**no**"


def _beside(results: Results, variant: str, ours: str, theirs: str) -> str:
    one, other = (results.spread(name, "cpu_small") for name in (ROUTER, variant))
    if one is None or other is None:
        return "not measured."
    figure = BY_KEY["cpu_small"]
    return f"CPU per request {ours} {cell(figure, one)} µs, {theirs} {cell(figure, other)} µs."


def _note(note: str) -> str:
    first, *_ = note.splitlines()
    return f"- {first}"


def write_page(results: Results, run: Run, page: Path = PAGE, plot: Path = PLOT) -> None:
    """Replace the generated part of the page, and the plot.

    Raises:
        BenchError: the page has no markers.
    """
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{page.name} has lost its markers {BEGIN!r} and {END!r}")
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(draw(results, run.names), encoding="utf-8")
    report = render(results, run, plot=plot.relative_to(page.parent).as_posix())
    page.write_text(f"{head}{BEGIN}\n\n{report}\n{END}{tail}", encoding="utf-8")
