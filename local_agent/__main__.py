"""`python -m local_agent` and `iir-agent`: the command line."""

from __future__ import annotations

from local_agent.cli.app import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
