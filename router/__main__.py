"""`python -m router` and `iir`: the command line."""

from __future__ import annotations

from router.cli import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
