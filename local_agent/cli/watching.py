"""`iir-agent events` and `logs`: what happens to workers, and what engines print."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Annotated, Any
from urllib.parse import quote

import typer

from local_agent.cli.context import open_context, plain_errors

# an engine's colours may pass, nothing else that moves a terminal
_CONTROL = re.compile(r"(\x1b\[[0-9;]*m)|\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_INTERRUPTED = 130

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value a line.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to `iir-agent`."""
    app.command("events")(events)
    app.command("logs")(logs)


def events(
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", "-f", help="Go on with what happens.")
    ] = True,
    since: Annotated[
        int | None, typer.Option(min=0, help="Only events behind this number.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what happened to the workers, and what happens, until Ctrl-C."""
    params = {"follow": str(follow).lower()}
    if since is not None:
        params["since"] = str(since)
    with plain_errors(as_json=as_json), _until_interrupted():
        with open_context().agent.lines("/internal/events", params) as lines:
            for data in _events(lines):
                typer.echo(json.dumps(data) if as_json else _event_text(data))
        if follow:
            typer.echo("iir-agent: the agent is stopping", err=True)


def logs(
    model: Annotated[str, typer.Argument(help="Id or alias of the model.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is printed, over restarts.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=10_000, help="How many lines to go back.")
    ] = 100,
    as_json: Json = False,
) -> None:
    """Show what a model's engine has printed; secrets in it are hidden."""
    params = {"lines": str(lines), "follow": str(follow).lower()}
    path = f"/internal/models/{quote(model)}/logs"
    with plain_errors(as_json=as_json), _until_interrupted():
        with open_context().agent.lines(path, params) as found:
            for line in found:
                text = _CONTROL.sub(r"\1", line)
                typer.echo(json.dumps({"model": model, "line": text}) if as_json else text)
        if follow:
            typer.echo("iir-agent: the agent is stopping", err=True)


@contextlib.contextmanager
def _until_interrupted() -> Iterator[None]:
    """End quietly by Ctrl-C: it is the way out of a stream that has no end."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data:"):
            yield json.loads(line.removeprefix("data:"))


def _event_text(data: dict[str, Any]) -> str:
    if "lost" in data:
        missed = data["lost"]
        return "-- the agent has started anew --" if missed is None else f"-- {missed} missed --"
    at = datetime.fromtimestamp(data["ts"], timezone.utc).astimezone().strftime("%H:%M:%S")
    text = f"{at}  {data['seq']}  {data['worker']}  {data['from']} -> {data['to']}"
    return f"{text}  ({data['reason']})" if data["reason"] else text
