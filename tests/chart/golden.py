"""The profiles as they were rendered last: `python -m tests.chart.golden` writes them anew, to be read in a diff."""

from __future__ import annotations

import sys

from tests.chart.rendering import manifest
from tests.chart.scenarios import PROFILES
from tests.integration.stack import ROOT

FOLDER = ROOT / "tests" / "chart" / "golden"


def main() -> None:
    """Write one file for each profile."""
    FOLDER.mkdir(exist_ok=True)
    for profile in PROFILES:
        (FOLDER / f"{profile}.yaml").write_text(manifest(profile=profile))
    sys.stdout.write(f"{len(PROFILES)} files in {FOLDER.relative_to(ROOT)}: read the diff\n")


if __name__ == "__main__":
    main()
