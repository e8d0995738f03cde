"""Every command and snippet of the documents runs, or says what it needs or which test runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from local_agent.config_file import load_config
from shared.kit.clock import monotonic
from tests.docs.playground import PATIENCE_S, Done, Playground
from tests.docs.snippets import NEEDS, SPOKEN, Snippet, missing_lines, snippets, unknown_marks

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PAGES = {str(path.relative_to(ROOT)): snippets(path, path.read_text()) for path in DOCUMENTS}
ALL = [one for page in PAGES.values() for one in page]


def test_every_snippet_says_how_it_is_tested() -> None:
    assert len(ALL) > 40
    unmarked = [str(one) for one in ALL if one.language in SPOKEN and one.how is None]
    assert unmarked == []


def test_every_mark_is_known() -> None:
    assert [one for path in DOCUMENTS for one in unknown_marks(path, path.read_text())] == []


@pytest.mark.parametrize(
    "mark", ["<!-- print -->", "<!-- runs: twice -->", "<!-- tested: -->", "<!--runs-->"]
)
def test_a_mark_that_is_not_known_is_found(mark: str) -> None:
    block = "```text\n1\n```\n"
    assert unknown_marks(Path("page"), f"<!-- prints -->\n{block}") == []
    assert unknown_marks(Path("page"), f"words\n{mark}\n{block}") == [f"page:2: {mark}"]
    assert unknown_marks(Path("page"), f"<!-- prints -->\nwords\n{block}") != []


def test_what_was_printed_is_found_line_by_line_in_order_and_as_whole_words() -> None:
    output = 'a model   is there\n{"to": "ready"}\nlast 12 s\n'
    said = 'model … there\n"to": "ready"\nlast … s\n'
    assert missing_lines(said, output) == []
    odd = ["mode", "model … ready", "1", "there is"]
    assert missing_lines("\n".join(odd), output) == odd
    assert missing_lines("last\na model\n", output) == ["a model"]


def test_what_a_snippet_needs_is_something_that_tests_do_not_have() -> None:
    odd = [f"{one}: {one.what}" for one in ALL if one.how == "needs" and not is_a_need(one.what)]
    assert odd == []


def is_a_need(what: str | None) -> bool:
    return (what or "").startswith(NEEDS)


def test_the_test_that_a_snippet_names_is_there() -> None:
    named = [one for one in ALL if one.how == "tested"]
    assert named
    missing = [f"{one}: {one.what}" for one in named if not (ROOT / (one.what or "-")).is_file()]
    assert missing == []


def test_every_agents_file_is_one(tmp_path: Path) -> None:
    files = [one for one in ALL if one.how == "agent.yaml"]
    assert len(files) > 3
    for one in files:
        path = tmp_path / "agent.yaml"
        path.write_text(one.text)
        written = {model["id"] for model in yaml.safe_load(one.text)["models"]}
        assert written, str(one)
        assert written <= {model.id for model in load_config(path, {}).models}, str(one)


RUNNING = sorted(name for name, page in PAGES.items() if any(one.how == "runs" for one in page))


WITH_KEYS = [
    name
    for name in RUNNING
    if any("iir keys create" in one.text for one in PAGES[name] if one.how == "runs")
]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*RUNNING} - {*WITH_KEYS}))
def test_the_commands_of_a_page_run(name: str, shared_ground: Playground) -> None:
    assert follow(PAGES[name], shared_ground) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_KEYS)
def test_the_commands_of_a_page_that_ends_the_open_mode_run(
    name: str, place: Path, tmp_path: Path
) -> None:
    with Playground(place, tmp_path / "checkout") as ground:
        assert follow(PAGES[name], ground) > 0


def follow(page: Sequence[Snippet], ground: Playground) -> int:
    """Do what a reader does who types in all that a page shows; return how many snippets ran."""
    printed, ran, again = "", 0, None
    for one in page:
        if one.how == "runs":
            ground.catch_up()
            done = run(one, ground)
            again = one if one.what == "until it prints" else None
            assert (done.code != 0) == (one.what == "and fails"), f"{one}:\n{done.output}"
            printed = done.output
            ran += 1
        elif one.how == "prints":
            ends = monotonic() + PATIENCE_S
            while (lines := missing_lines(ground.here(one.text), printed)) and again is not None:
                assert monotonic() < ends, f"{one}: not printed, but:\n{printed}"
                printed = run(again, ground).output
            assert lines == [], f"{one}: not printed, but:\n{printed}"
    return ran


def run(one: Snippet, ground: Playground) -> Done:
    if one.language in {"python", "py"}:
        return ground.run(one.text, "python")
    if one.what == "until Ctrl-C":
        done = ground.run_until_it_speaks(one.text)
        return Done(0 if done.code in {0, 130} else done.code, done.output)
    return ground.run(one.text)
