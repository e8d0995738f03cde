"""Makefile and justfile: the same names, all explained, nothing that GNU make 3.81 lacks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

MAKEFILE = Path("Makefile").read_text()
PROMISED = {
    "help", "setup", "dev", "up", "down", "test", "test-integration", "soak", "bench", "lint", "format", "migrate",
    "seed", "docs", "dist", "k3s-up", "k3s-down", "k3s-status", "k3s-doctor",
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_the_checkout(own_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs under test are named by their path in the checkout."""
    monkeypatch.chdir(Path(__file__).parents[2])


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", MAKEFILE, re.MULTILINE))


def test_every_promised_target_is_there() -> None:
    assert targets() >= PROMISED


def test_help_explains_every_target() -> None:
    shown = subprocess.run(["make", "help"], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  make ([a-z0-9-]+) +\S", shown, re.MULTILINE)) == targets()


def test_help_is_the_default() -> None:
    plain, asked = (
        subprocess.run(["make", *goal], capture_output=True, text=True, check=True).stdout
        for goal in ([], ["help"])
    )
    assert plain == asked


def test_the_justfile_has_the_same_names() -> None:
    recipes = set(re.findall(r"^([a-z][a-z0-9-]*):", Path("justfile").read_text(), re.MULTILINE))
    assert recipes - {"default"} == targets() - {"setup-dev"}


@pytest.mark.parametrize("newer", [".ONESHELL", "!=", "$(file", "&:", "$(guile", ":::=", "::="])
def test_nothing_newer_than_make_381_is_used(newer: str) -> None:
    recipes_apart = "\n".join(line for line in MAKEFILE.splitlines() if not line.startswith("\t"))
    assert newer not in recipes_apart


def test_dev_needs_no_developer_tools() -> None:
    planned = subprocess.run(
        ["make", "-n", "dev"], capture_output=True, text=True, check=True
    ).stdout
    assert "setup.sh run" in planned
    assert "setup.sh dev" not in planned


def run_check(folder: Path, base: str) -> subprocess.CompletedProcess[str]:
    script = Path("scripts/check_changelog.sh").absolute()
    return subprocess.run(
        ["sh", str(script), base], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_change_without_a_changelog_entry_fails(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    git("init", "-q", "-b", "main")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n")
    git("add", ".")
    git("commit", "-qm", "one")
    git("switch", "-qc", "feat/x")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-qm", "two")
    refused = run_check(tmp_path, "main")
    assert refused.returncode == 1
    assert "add one under [Unreleased]" in refused.stderr
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n- a thing\n")
    git("commit", "-qam", "three")
    assert run_check(tmp_path, "main").returncode == 0


def test_pre_commit_checks_what_make_lint_checks() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe
    lines = recipe[1].replace('"$(BIN)/', '".venv/bin/').replace('"', "").splitlines()
    made = {line.split(" || ")[0].strip().removeprefix("@") for line in lines}
    hooks = yaml.safe_load(Path(".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {re.sub(r"^sh -c '(.*)'$", r"\1", hook["entry"]) for hook in hooks} == made


def test_pre_commit_fetches_nothing() -> None:
    (repo,) = yaml.safe_load(Path(".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}


def test_the_hook_can_be_installed(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    shutil.copy(".pre-commit-config.yaml", tmp_path)
    subprocess.run(
        [sys.executable, "-m", "pre_commit", "install"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert (tmp_path / ".git" / "hooks" / "pre-commit").is_file()
