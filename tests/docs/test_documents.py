"""What the documents say exists: commands, targets, links, settings, error codes, routes."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

import local_agent
import local_agent.cli.app
import local_agent.errors
import router
import router.cli
import router.errors
import shared
from scripts.devstack.text import curl, snippet
from scripts.gen_config_docs import example, reference
from scripts.reference import commands, errors, routes
from shared.http.error_codes import EXPLANATIONS
from shared.http.errors import UpstreamAnswer

DOCUMENTS = sorted([*Path().glob("*.md"), *Path("docs").rglob("*.md")])
TEXTS = {path: path.read_text() for path in DOCUMENTS}
README = TEXTS[Path("README.md")]
MAKEFILE = Path("Makefile").read_text()
PROGRAMS = {
    "iir": typer.main.get_command(router.cli.app),
    "iir-agent": typer.main.get_command(local_agent.cli.app.app),
}
# What a later step brings is named in the status only.
COMMAND = re.compile(r"(?<![\w/:.-])(?:\.venv/bin/)?(iir(?:-agent)?)((?: [a-z][a-z-]*)+)")
NOT_BUILT: set[str] = set()


@pytest.fixture(autouse=True)
def in_the_checkout(own_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are named by their path in the checkout."""
    monkeypatch.chdir(Path(__file__).parents[2])


def code_spans() -> Iterator[tuple[Path, str]]:
    """Yield everything in the documents that is set as code."""
    for path, text in TEXTS.items():
        for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
            yield from ((path, line) for line in block.splitlines())
        without_blocks = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        yield from ((path, span) for span in re.findall(r"`([^`\n]+)`", without_blocks))


def named_commands() -> set[tuple[Path, str, str]]:
    return {
        (path, program, words.strip())
        for path, span in code_spans()
        for program, words in COMMAND.findall(span)
    }


def resolve(program: str, words: str) -> bool:
    """Tell whether the program has this command; words after a command are its arguments."""
    command: Any = PROGRAMS[program]
    for word in words.split():
        inner = getattr(command, "commands", None)
        if inner is None:
            return True
        if word not in inner:
            return False
        command = inner[word]
    return True


def test_every_command_that_is_named_exists() -> None:
    named = named_commands()
    assert len(named) > 20
    missing = sorted(
        f"{path}: {program} {words}"
        for path, program, words in named
        if not resolve(program, words) and f"{program} {words}" not in NOT_BUILT
    )
    assert missing == []


def test_what_is_said_to_be_missing_is_missing() -> None:
    assert [text for text in sorted(NOT_BUILT) if resolve(*text.split(maxsplit=1))] == []


def all_commands(command: Any, name: str) -> Iterator[str]:
    for word, inner in getattr(command, "commands", {}).items():
        yield from all_commands(inner, f"{name} {word}")
    if not hasattr(command, "commands") and not command.hidden:
        yield name


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_every_command_has_a_section_with_all_that_it_takes(program: str) -> None:
    assert TEXTS[Path("docs/cli.md")] == commands.page(), "run `make docs`"
    sections = dict(SECTION.findall(TEXTS[Path("docs/cli.md")]))
    found = list(all_commands(PROGRAMS[program], program))
    assert [name for name in found if name not in sections] == []
    for name in found:
        for option in options(program, name):
            assert f"`{option}" in sections[name] or f", {option}" in sections[name], (name, option)


SECTION = re.compile(r"^### `(iir[^`]*)`\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)


def options(program: str, name: str) -> list[str]:
    command: Any = PROGRAMS[program]
    for word in name.split()[1:]:
        command = command.commands[word]
    return [name for one in command.params for name in one.opts if name.startswith("--")]


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", MAKEFILE, re.MULTILINE))
    named = {
        target
        for _, span in code_spans()
        for target in re.findall(r"\bmake ([a-z][a-z0-9-]*)", span)
    }
    assert {"dev", "test", "up", "down"} <= named
    assert named <= targets


def test_every_link_between_documents_resolves() -> None:
    broken = [
        f"{path}: {target}"
        for path, text in TEXTS.items()
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if not re.match(r"[a-z]+:", target) and not is_there(path, target)
    ]
    assert broken == []


def is_there(path: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    found = path.parent / name if name else path
    if not found.exists():
        return False
    headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE) if anchor else []
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return not anchor or anchor in slugs


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    navigation = Path("mkdocs.yml").read_text()
    pages = [str(path.relative_to("docs")) for path in Path("docs").rglob("*.md")]
    assert [page for page in pages if page not in navigation] == []


def test_pages_of_the_site_link_to_each_other_only() -> None:
    outside = [
        f"{path}: {target}"
        for path, text in TEXTS.items()
        if path.parts[0] == "docs"
        for target in re.findall(r"\]\((\.\./[^)\s]+)\)", text)
        if not (path.parent / target).resolve().is_relative_to(Path("docs").resolve())
    ]
    assert outside == []


def test_every_setting_is_documented() -> None:
    assert TEXTS[Path("docs/configuration.md")] == reference(), "run `make docs`"
    assert Path(".env.example").read_text() == example(), "run `make docs`"
    assert all(row.count("|") == 4 for row in reference().splitlines() if row.startswith("| `"))


def test_no_example_holds_a_secret() -> None:
    for line in Path(".env.example").read_text().splitlines():
        assert not line or line.startswith("#")
        assert not re.match(r"#(EXTERNAL_OPENAI_KEY|HF_TOKEN)=.+", line)


def loaded(package: ModuleType) -> Iterator[ModuleType]:
    """Load and yield all modules of a package; none does anything by being loaded but `main`."""
    yield package
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if info.name.rpartition(".")[2] not in {"main", "__main__", "env"}:
            yield importlib.import_module(info.name)


def test_every_error_code_is_explained_and_every_explanation_is_of_a_code() -> None:
    modules = {module.__name__ for root in (router, local_agent, shared) for module in loaded(root)}
    codes = {kind.code for kind in errors.kinds() if kind.__module__ in modules}
    assert {router.errors.NoEndpoint.code, local_agent.errors.WorkerGone.code} <= codes
    codes.add(UpstreamAnswer("", status=500, type_="", code=None, is_retryable=False).code)
    assert codes == set(EXPLANATIONS)
    assert set(errors.statuses()) == codes


def test_no_error_code_is_made_up_where_it_is_answered() -> None:
    places = [
        f"{path}: {code}"
        for root in ("router", "local_agent", "shared")
        for path in Path(root).rglob("*.py")
        if path.parts[:2] != ("shared", "testing")
        for code in re.findall(r'\bcode="([a-z_]+)"', path.read_text())
    ]
    assert places == []


def test_every_error_code_has_a_section_that_says_what_to_do() -> None:
    page = TEXTS[Path("docs/errors.md")]
    assert page == errors.page(), "run `make docs`"
    for code, entry in EXPLANATIONS.items():
        _, section = page.split(f"\n## `{code}`\n")
        section = section.partition("\n## ")[0]
        for part in entry:
            assert len(part) > 5
            assert part in section


def test_every_route_is_documented() -> None:
    page = TEXTS[Path("docs/routes.md")]
    assert page == routes.page(), "run `make docs`"
    for _, document in routes.documents():
        for path, methods in document["paths"].items():
            assert all(f"`{method.upper()} {path}`" in page for method in methods), path


def test_the_first_screen_of_the_readme_has_what_a_newcomer_needs() -> None:
    screen = "\n".join(README.splitlines()[:30])
    assert "make dev" in screen
    assert "make test" in screen
    assert curl("http://127.0.0.1:8000") in screen
    assert snippet("http://127.0.0.1:8000") in screen


def test_the_changelog_has_a_place_for_what_is_new() -> None:
    assert "## [Unreleased]" in TEXTS[Path("CHANGELOG.md")]


def test_every_row_of_the_status_has_a_known_state() -> None:
    rows = [
        row.split(" | ")
        for row in TEXTS[Path("IMPLEMENTATION_STATUS.md")].splitlines()
        if row.startswith("| ") and not row.startswith("| feature")
    ]
    assert len(rows) > 30
    for row in rows:
        state = re.split(r"[,:; ]", row[1])[0]
        assert state in {"works", "partial", "missing"}, row
        assert state != "works" or row[2].strip(" |"), f"no command shows it: {row}"
