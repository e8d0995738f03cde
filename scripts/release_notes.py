"""What a release says: the section of CHANGELOG.md for a tag. Standard library only.

    python -m scripts.release_notes v1.2.3 > notes.md

The release workflow runs it first: a tag that does not fit the version, or has no section, releases nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from shared import __version__

_ROOT = Path(__file__).resolve().parent.parent
_TAG = re.compile(r"v\d+\.\d+\.\d+(?:rc\d+)?")
_HEADING = re.compile(r"^## \[([^\]]+)\](?: - (\S+))?[ ]*$", re.MULTILINE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


class NoRelease(Exception):
    """The tag can't be released; the message says why, and what to do."""


def notes(tag: str, version: str, changelog: str) -> str:
    """Return what CHANGELOG.md says of the release.

    Args:
        tag: like `v1.2.3`, or `v1.2.3rc1` for a release candidate.
        version: the program's own.
        changelog: the text of CHANGELOG.md (https://keepachangelog.com/en/1.1.0/).

    Raises:
        NoRelease: tag and version differ, or there is no dated section with a line in it.
    """
    if _TAG.fullmatch(tag) is None:
        raise NoRelease(f"{tag!r} is no release's tag: it must read like v1.2.3 or v1.2.3rc1")
    if tag != f"v{version}":
        raise NoRelease(
            f"the tag is {tag}, but the program is {version}: set `__version__` in "
            "shared/__init__.py first, and tag that commit"
        )
    headings = list(_HEADING.finditer(changelog))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        if heading[1] == version:
            section = changelog[heading.end() : following.start() if following else None].strip()
            return _checked(section, heading)
    raise NoRelease(
        f"CHANGELOG.md has no section [{version}]: rename [Unreleased] to "
        f"`## [{version}] - YYYY-MM-DD`, and put a new [Unreleased] above it"
    )


def _checked(section: str, heading: re.Match[str]) -> str:
    if _DATE.fullmatch(heading[2] or "") is None:
        raise NoRelease(f"the section {heading[0].strip()!r} needs a date: ` - YYYY-MM-DD`")
    if not re.search(r"^- \S", section, re.MULTILINE):
        raise NoRelease(f"the section {heading[0].strip()!r} says nothing")
    return section


def main() -> int:
    """Print the section; 1, and the reason, if there is no release."""
    parser = argparse.ArgumentParser(description="Print what CHANGELOG.md says of a release.")
    parser.add_argument("tag", help="the release's tag, like v1.2.3")
    asked = parser.parse_args()
    try:
        print(notes(asked.tag, __version__, (_ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    except NoRelease as reason:
        print(reason, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
