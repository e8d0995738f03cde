"""Write `docs/errors.md`, `docs/cli.md` and `docs/routes.md` from the code.

`--check` writes nothing and fails if one of them is out of date: part of `make lint`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.reference import commands, errors, routes
from scripts.reference.writing import write_or_check

PAGES = {
    Path("docs/errors.md"): errors.page,
    Path("docs/cli.md"): commands.page,
    Path("docs/routes.md"): routes.page,
}


def main() -> int:
    """Write the pages, or compare them."""
    return write_or_check({path: page() for path, page in PAGES.items()}, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
