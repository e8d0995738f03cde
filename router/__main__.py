"""`python -m router` and `iir`: the command line."""

from __future__ import annotations

from shared.kit.memory import loading


def main() -> None:
    """Run the command line."""
    with loading():
        from router.cli import app  # noqa: PLC0415 - see `loading`
    app()


if __name__ == "__main__":
    main()
