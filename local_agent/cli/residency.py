"""`iir-agent load`, `unload`, `pin`, `unpin`, `reset` and `plan`: which models are in memory."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from local_agent.cli.context import Json, open_context, plain_errors

Model = Annotated[str, typer.Argument(help="Id or alias of the model.")]

_VERDICTS = {
    "loaded": "is in memory",
    "fits": "fits into what is free",
    "evicts": "fits after these have gone",
    "waits": "has to wait until these have finished their requests or were there for long enough",
    "never": "does not fit",
}


def add_commands(app: typer.Typer) -> None:
    """Add the commands to `iir-agent`."""
    app.command("load")(load)
    app.command("unload")(unload)
    app.command("pin")(pin)
    app.command("unpin")(unpin)
    app.command("reset")(reset)
    app.command("plan")(plan)


def load(
    model: Model,
    wait_s: Annotated[
        float, typer.Option("--wait-s", min=0, max=3600, help="How long to wait, in seconds.")
    ] = 600.0,
    as_json: Json = False,
) -> None:
    """Load a model, and wait until it serves."""
    with plain_errors(as_json=as_json):
        row = open_context().agent.tell(model, "load", {"wait_s": wait_s}, timeout_s=wait_s)
        _say(row, f"{row['model']} is loaded ({row.get('memory_mb')} MiB)", as_json=as_json)


def unload(model: Model, as_json: Json = False) -> None:
    """Take a model out of memory once its requests have finished."""
    with plain_errors(as_json=as_json):
        row = open_context().agent.tell(model, "unload")
        _say(row, f"{row['model']} goes once its requests have finished", as_json=as_json)


def pin(model: Model, as_json: Json = False) -> None:
    """Keep a model in memory, once it is there, until `unpin`; over the file's `pin`, and for good."""
    with plain_errors(as_json=as_json):
        row = open_context().agent.tell(model, "pin")
        _say(row, f"{row['model']} is pinned", as_json=as_json)


def unpin(model: Model, as_json: Json = False) -> None:
    """Let a model make room for others."""
    with plain_errors(as_json=as_json):
        row = open_context().agent.tell(model, "unpin")
        _say(row, f"{row['model']} is not pinned", as_json=as_json)


def reset(model: Model, as_json: Json = False) -> None:
    """Forget the failures of a model's worker, so that it is started again."""
    with plain_errors(as_json=as_json):
        row = open_context().agent.tell(model, "reset")
        _say(row, f"{row['model']} has no failures any more: it is {row['state']}", as_json=as_json)


def plan(model: Model, as_json: Json = False) -> None:
    """Say what a load would do, and who would have to go; nothing is changed."""
    with plain_errors(as_json=as_json):
        row = open_context().agent.tell(model, "plan")
        _say(row, _plan_text(row), as_json=as_json)


def _plan_text(row: dict[str, Any]) -> str:
    verdict = _VERDICTS.get(row["verdict"], row["verdict"])
    if "cause" in row and not row["would_go"]:
        verdict = "has to wait for memory that other programs have"
    free = f"{row['free_mb']} of {row['budget_mb']} MiB are free"
    lines = [f"{row['model']} {verdict}: it needs {row['needs_mb']} MiB, {free}"]
    for one in row["would_go"]:
        marks = [name for name in ("pinned", "busy") if one[f"is_{name}"]]
        more = "".join(f", {mark}" for mark in marks)
        lines.append(f"  {one['model']} ({one['memory_mb']} MiB{more})")
    if "cause" in row:
        lines.append(f"the machine has no room now: {row['cause']}")
    return "\n".join(lines)


def _say(row: dict[str, Any], text: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(row) if as_json else text)
