"""The page on llm-d names what the commands take, and what they set up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from scripts.k3s.__main__ import _parser
from tests.scripts.k3s.stage import PROFILES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/llm-d.md").read_text()
BY_VARIABLE = {"--help", "--dry-run", "--yes", "--purge"}


def test_every_option_and_profile_is_on_the_page() -> None:
    options = {name for one in _parser()._actions for name in one.option_strings}
    long = {name for name in options if name.startswith("--")} - BY_VARIABLE
    assert len(long) > 8
    assert [
        name for name in sorted(long) if f"`{name}" not in PAGE and f", `{name}" not in PAGE
    ] == []
    assert [name for name in PROFILES if f"`{name}`" not in PAGE] == []


def test_the_makefile_sets_itself_up_and_hands_its_variables_on() -> None:
    variables = {"DRY_RUN": "1", "YES": "1", "PURGE": "1", "K3S_ARGS": "--port 18001"}
    planned = subprocess.run(
        ["make", "-n", "k3s-down"],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "setup.sh run" in planned
    assert "setup.sh dev" not in planned
    assert "-m scripts.k3s down --dry-run --yes --purge --port 18001" in planned
