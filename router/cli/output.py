"""What commands write: tables and JSON to stdout, errors as one line to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from router.settings import explained
from router.store.errors import Refusal, StoreError

# Piped output has no width of its own; a table that is cut off there loses names.
_PIPED_WIDTH = 200

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]


class CommandFailed(Exception):
    """A command that was asked for rightly and could not be done."""


class PoliteGroup(TyperGroup):
    """Turns what commands raise into one line and an exit code: 2 for what the user got wrong."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ValidationError as error:
            code, text = 2, explained(error)
        except Refusal as error:
            code, text = 2, str(error)
        except (StoreError, CommandFailed) as error:
            code, text = 1, str(error)
        typer.echo(f"iir: {' '.join(text.split())}", err=True)
        raise typer.Exit(code)


def write_json(value: object) -> None:
    """Write `value` as indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def write_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Write a table, or the line `empty` if there are no rows. None shows as a dash."""
    # here: `iir serve` needs none of it
    from rich.console import Console  # noqa: PLC0415 - see above
    from rich.table import Table  # noqa: PLC0415 - likewise
    from rich.text import Text  # noqa: PLC0415 - likewise

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text: what agents and providers called things must not be taken for markup.
        table.add_row(*(Text("-" if cell is None or cell == "" else str(cell)) for cell in row))
    if not table.row_count:
        typer.echo(empty)
        return
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


def date(seconds: int | None) -> str | None:
    """Return a time in seconds since 1970 as UTC, to the minute."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")
