"""`--version`, the same for both command lines."""

from __future__ import annotations

import typer

from shared import __version__


def add_version(app: typer.Typer, program: str, text: str) -> None:
    """Let `app` answer `--version`; `text` is what its help begins with."""

    def say(is_asked: bool) -> None:
        if is_asked:
            typer.echo(f"{program} {__version__}")
            raise typer.Exit

    asked = typer.Option(False, "--version", callback=say, is_eager=True, help="Show the version.")

    @app.callback(help=text)
    def root(version: bool = asked) -> None:
        del version
