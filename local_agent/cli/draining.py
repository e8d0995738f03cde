"""`iir-agent drain` and `resume`: whether the agent takes work."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from local_agent.cli.context import CommandFailed, Json, open_context, plain_errors
from local_agent.cli.listing import drain_text
from local_agent.cli.running import AgentUnreachable, CapacityRow, RunningAgent

_POLL_S = 0.25
_MISSES = 3


def add_commands(app: typer.Typer) -> None:
    """Add the commands to `iir-agent`."""
    app.command("drain")(drain)
    app.command("resume")(resume)


def drain(
    wait: Annotated[bool, typer.Option("--wait", help="Return when nothing is in hand.")] = False,
    as_json: Json = False,
) -> None:
    """Take no new work, from the router or from clients; what is in hand is finished."""
    with plain_errors(as_json=as_json):
        agent = open_context().agent
        found = agent.switch("drain")
        if wait:
            found = _until_drained(agent, found)
        _say(found, as_json=as_json)


def resume(as_json: Json = False) -> None:
    """Take work again after `drain`."""
    with plain_errors(as_json=as_json):
        _say(open_context().agent.switch("resume"), as_json=as_json)


def _until_drained(agent: RunningAgent, found: CapacityRow) -> CapacityRow:
    misses = 0
    while found.state == "draining":
        time.sleep(_POLL_S)
        answer = agent.capacity()
        misses = misses + 1 if answer is None else 0
        if misses >= _MISSES:
            raise AgentUnreachable("the agent has ended")
        found = answer or found
    if found.state != "drained":
        raise CommandFailed("somebody else has ended the drain, by `iir-agent resume`")
    return found


def _say(found: CapacityRow, *, as_json: bool) -> None:
    typer.echo(found.model_dump_json() if as_json else drain_text(found))
