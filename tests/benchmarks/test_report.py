"""The report: medians, ranges, ratios, verdicts; the page keeps what is hand-written."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.figures import (
    BUDGETS,
    REFERENCE,
    ROUTER,
    ROUTER_LARGE,
    ROUTER_PAIR,
    Budget,
    Results,
    judge,
)
from benchmarks.plot import draw
from benchmarks.processes import BenchError
from benchmarks.report import BEGIN, END, Run, budget_table, figure_table, render, write_page
from benchmarks.targets import Missing

NAMES = ("direct", ROUTER, ROUTER_LARGE, ROUTER_PAIR, REFERENCE)
RUN = Run(
    date="2026-01-02",
    machine="a machine",
    commit="abc",
    pinning="not pinned",
    rounds=3,
    seconds=1.0,
    names=NAMES,
    missing=[Missing("nginx", "not on PATH")],
)


def make_results(**figures: tuple[float, float]) -> Results:
    """Fill three rounds with the router's and the reference's values, twice as slow in the last."""
    results = Results()
    for key, (ours, theirs) in figures.items():
        for number, mood in enumerate((1.0, 1.1, 2.0), 1):
            results.add(ROUTER, key, number, ours * mood)
            results.add(REFERENCE, key, number, theirs * mood)
    return results


def test_a_cell_is_the_median_with_its_range() -> None:
    table = figure_table(make_results(cpu_small=(100, 1000)), NAMES)
    assert "| figure | router | vllm-router |" in table
    assert "| CPU per request, c16, µs | 110 [100–200] | 1,100 [1,000–2,000] |" in table
    assert "| RSS idle, MB | – | – |" in table


def test_the_ratio_does_not_depend_on_the_mood_of_the_machine() -> None:
    assert make_results(cpu_small=(150, 100)).ratio(ROUTER, REFERENCE, "cpu_small") == 1.5


def test_a_ratio_needs_rounds_that_measured_both() -> None:
    results = Results()
    results.add(ROUTER, "cpu_small", 1, 5)
    results.add(REFERENCE, "cpu_small", 2, 5)
    assert results.ratio(ROUTER, REFERENCE, "cpu_small") is None


@pytest.mark.parametrize(
    ("value", "reference", "first", "first_ratio", "final"),
    [
        (200, 200, True, True, True),
        (200, 110, True, True, False),
        (200, 100, True, False, False),
        (300, 300, False, True, True),
    ],
)
def test_budgets_are_judged_absolutely_and_as_ratios(
    value: float, reference: float, first: bool, first_ratio: bool, final: bool
) -> None:
    budget = Budget(key="cpu_small", first=230, first_ratio=1.85, final_ratio=1.0)
    (verdict,) = judge(make_results(cpu_small=(value, reference)), [budget])
    assert verdict.is_first_met is first
    assert verdict.is_first_ratio_met is first_ratio
    assert verdict.is_final_met is final


def test_a_rate_has_to_be_at_least_its_budget() -> None:
    budget = Budget(key="rate", final=99, is_least=True)
    results = Results()
    results.add(ROUTER, "rate", 1, 98.9)
    assert [v.is_final_met for v in judge(results, [budget])] == [False]
    results.add(ROUTER, "rate", 1, 99.0)
    assert [v.is_final_met for v in judge(results, [budget])] == [True]


def test_what_was_not_measured_is_not_judged() -> None:
    verdicts = judge(Results())
    assert len(verdicts) == len(BUDGETS)
    assert {v.is_first_met for v in verdicts} == {None}
    assert "yes" not in budget_table(verdicts)


def test_a_large_registry_is_held_against_the_small_one() -> None:
    results = make_results(cpu_small=(100, 100))
    for number, value in enumerate((105.0, 112.0, 230.0), 1):
        results.add(ROUTER_LARGE, "cpu_small", number, value)
    (verdict,) = (v for v in judge(results) if v.budget.of == ROUTER_LARGE)
    assert verdict.ratio == 1.05
    assert verdict.is_final_met is True


def test_two_processes_are_held_against_one_and_have_no_column() -> None:
    results = make_results(cpu_small=(100, 100))
    for number, value in enumerate((119.0, 133.0, 238.0), 1):
        results.add(ROUTER_PAIR, "cpu_small", number, value)
    (verdict,) = (v for v in judge(results) if v.budget.of == ROUTER_PAIR)
    assert verdict.is_final_met is False
    assert "Processes: CPU per request of one process 110 [100–200] µs, of two" in render(
        results, RUN
    )
    assert "| figure | router | vllm-router |" in figure_table(results, NAMES)


def test_the_report_names_what_is_missing_and_what_went_wrong() -> None:
    results = make_results(cpu_small=(1, 1))
    results.notes.append("router, start, round 1: it ended\nlong output")
    text = render(results, RUN)
    assert "nginx (not on PATH)" in text
    assert "- router, start, round 1: it ended\n" in text
    assert "long output" not in text


def test_the_page_keeps_what_is_hand_written(tmp_path: Path) -> None:
    page, plot = tmp_path / "page.md", tmp_path / "assets" / "plot.svg"
    page.write_text(f"# Ours\n\n{BEGIN}\nold\n{END}\n\n## Also ours\n")
    for _ in range(2):
        write_page(make_results(cpu_small=(1, 2)), RUN, page, plot)
    text = page.read_text()
    assert text.startswith(f"# Ours\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n\n## Also ours\n")
    assert text.count("| figure | router |") == 1
    assert "(assets/plot.svg)" in text
    assert "old" not in text


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Ours\n")
    with pytest.raises(BenchError, match="markers"):
        write_page(Results(), RUN, page, tmp_path / "plot.svg")
    assert page.read_text() == "# Ours\n"


def test_the_plot_is_one_svg_with_a_point_per_value() -> None:
    root = ET.fromstring(draw(make_results(cpu_small=(100, 0.5), lag_p99=(3, 4)), NAMES))
    points = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(points) == 4
    width = float(root.attrib["viewBox"].split()[2])
    assert all(0 < float(point.attrib["cx"]) < width for point in points)


def test_a_plot_of_nothing_is_still_a_picture() -> None:
    assert ET.fromstring(draw(Results(), NAMES)).tag.endswith("svg")
