"""Which tags are released, and what a release says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.release_notes import NoRelease, notes
from shared import __version__

CHANGELOG = """\
# Changelog

## [Unreleased]

### Added
- What comes next.

## [1.2.0] - 2026-11-30

### Added
- A thing, `## [9.9.9]` is no heading within a line.

### Fixed
- A fault
  of two lines.

## [1.1.0rc1] - 2026-10-01

### Added
- The first.
"""


def test_a_section_is_taken_whole_and_nothing_else() -> None:
    assert notes("v1.2.0", "1.2.0", CHANGELOG) == (
        "### Added\n- A thing, `## [9.9.9]` is no heading within a line.\n\n"
        "### Fixed\n- A fault\n  of two lines."
    )


def test_the_last_section_of_the_file_ends_with_it() -> None:
    assert notes("v1.1.0rc1", "1.1.0rc1", CHANGELOG) == "### Added\n- The first."


@pytest.mark.parametrize(
    ("tag", "version", "reason"),
    [
        ("v1.2.0", "1.1.0", "the tag is v1.2.0, but the program is 1.1.0"),
        ("v1.3.0", "1.3.0", "has no section [1.3.0]"),
        ("1.2.0", "1.2.0", "is no release's tag"),
        ("v1.2", "1.2", "is no release's tag"),
        ("v1.2.0-beta", "1.2.0-beta", "is no release's tag"),
        ("v1.2.0;id", "1.2.0;id", "is no release's tag"),
        ("vUnreleased", "Unreleased", "is no release's tag"),
    ],
)
def test_what_does_not_fit_is_not_released(tag: str, version: str, reason: str) -> None:
    with pytest.raises(NoRelease, match=re.escape(reason)):
        notes(tag, version, CHANGELOG)


@pytest.mark.parametrize(
    ("heading", "lines", "reason"),
    [
        ("## [1.0.0]", "- a line", "needs a date"),
        ("## [1.0.0] - soon", "- a line", "needs a date"),
        ("## [1.0.0] - 2026-11-30", "### Added", "says nothing"),
    ],
)
def test_a_section_needs_its_date_and_a_line(heading: str, lines: str, reason: str) -> None:
    with pytest.raises(NoRelease, match=reason):
        notes("v1.0.0", "1.0.0", f"# Changelog\n\n{heading}\n\n{lines}\n")


def test_the_program_tells_the_workflow() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.release_notes", "v0.0.0"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"the program is {__version__}" in done.stderr
