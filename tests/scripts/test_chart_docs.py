"""The table of the chart's values: every value is in it, and every value is described."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.gen_chart_docs import BEGIN, END, Value, readme, values

ROOT = Path(__file__).parents[2]
SMALL = """\
# A file.

# -- How it runs
mode: fast
engine:
  # -- Its image
  image: x:1
  # -- Its resources
  resources:
    limits: {memory: 1Gi}
"""


def test_a_described_key_is_a_row_with_its_default() -> None:
    assert values(SMALL) == [
        Value("mode", '"fast"', "How it runs"),
        Value("engine.image", '"x:1"', "Its image"),
        Value("engine.resources", '{"limits": {"memory": "1Gi"}}', "Its resources"),
    ]


@pytest.mark.parametrize("path", ["engine.other", "more"])
def test_a_key_without_a_description_is_named(path: str) -> None:
    line = "  other: 1\n" if path == "engine.other" else "more: {}\n"
    with pytest.raises(ValueError, match=f"`{path}` has no description"):
        values(SMALL + line)


def test_what_stands_around_the_table_stays() -> None:
    once = readme(f"before\n\n{BEGIN}old\n{END}after\n", SMALL)
    assert once.startswith(f"before\n\n{BEGIN}\n| Value |")
    assert once.endswith(f"{END}after\n")
    assert "old" not in once
    assert readme(once, SMALL) == once


def test_the_readme_has_what_the_chart_has() -> None:
    chart = ROOT / "worker_cluster" / "chart"
    text = (chart / "README.md").read_text()
    assert readme(text, (chart / "values.yaml").read_text()) == text
    for profile in (chart / "values").iterdir():
        assert f"`{profile.stem}`" in text
