"""`iir-agent engines`: the engines that have a Python environment of their own."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from local_agent.cli.context import CommandFailed, Context, Json, open_context, plain_errors
from local_agent.cli.listing import console
from local_agent.cli.running import AgentUnreachable
from local_agent.domain import HostFacts
from local_agent.engines import ENGINES
from local_agent.environments import Environments, InstallFailed, recipe_of
from local_agent.ports import Recipe
from local_agent.this_host import this_host
from local_agent.watched_command import Report, Step
from local_agent.weights.progress import gigabytes
from shared.kit.clock import monotonic

app = typer.Typer(help="Engines with a Python environment of their own.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The engine, like mlx_lm.")]

_LINE_EVERY_S = 5.0


@app.command("install")
def install(name: Name, as_json: Json = False) -> None:
    """Install an engine, or its newer version; nothing is installed without this command."""
    with plain_errors(as_json=as_json), _plain():
        context = open_context()
        host = this_host(context.settings)
        recipe = _recipe(name, host)
        _refuse_running(context, name)
        with _shown(as_json=as_json) as report:
            _environments(context).install(name, recipe, host, report)
        context.agent.reload()
        requirements = [requirement.split(" @ ")[0] for requirement in recipe.requirements]
        if as_json:
            typer.echo(json.dumps({"installed": name, "requirements": requirements}))
        else:
            typer.echo(f"installed {name}: {', '.join(requirements)}")


@app.command("remove")
def remove(name: Name, as_json: Json = False) -> None:
    """Remove an engine that `install` has installed; models and their weights stay."""
    with plain_errors(as_json=as_json), _plain():
        context = open_context()
        if name not in ENGINES or recipe_of(ENGINES[name], this_host(context.settings)) is None:
            raise _unknown(name)
        _refuse_running(context, name)
        was_there = _environments(context).remove(name)
        context.agent.reload()
        if as_json:
            typer.echo(json.dumps({"removed": name if was_there else None}))
        else:
            typer.echo(f"removed {name}" if was_there else f"{name} was not installed")


@app.command("list")
def list_engines(as_json: Json = False) -> None:
    """List the engines that can be installed, and what is installed."""
    with plain_errors(as_json=as_json):
        rows = _rows(open_context())
        if as_json:
            typer.echo(json.dumps(rows))
            return
        table = Table("engine", "state", "what", box=None, pad_edge=False)
        for row in rows:
            table.add_row(*(escape(row[key]) for key in ("engine", "state", "what")))
        console().print(table)


def _rows(context: Context) -> list[dict[str, str]]:
    host, environments = this_host(context.settings), _environments(context)
    rows = []
    for name in ENGINES:
        recipe = recipe_of(ENGINES[name], host)
        if recipe is None:
            continue
        found = environments.find(name)
        if isinstance(recipe, str):
            state, what = "not for this host", recipe
        elif found is None:
            size = gigabytes(recipe.size_mb * 1024 * 1024)
            state, what = "not installed", f"iir-agent engines install {name} ({size})"
        elif not found.is_ours:
            state, what = "installed", "an environment of yours"
        elif environments.is_outdated(name, found, recipe):
            state, what = "outdated", f"iir-agent engines install {name}"
        else:
            shown = ", ".join(each.split(" @ ")[0] for each in found.requirements)
            state, what = "installed", f"{shown} (Python {found.python})"
        rows.append({"engine": name, "state": state, "what": what})
    return rows


def _refuse_running(context: Context, name: str) -> None:
    """Refuse while a worker runs it, which would find other files from one moment to the next."""
    with contextlib.suppress(AgentUnreachable):
        for worker in context.agent.workers():
            if worker.engine == name and worker.pid is not None:
                command = f"iir-agent unload {shlex.quote(worker.model)}"
                raise CommandFailed(f"{worker.model} runs on {name}; unload it first: {command}")


def _recipe(name: str, host: HostFacts) -> Recipe:
    recipe = recipe_of(ENGINES[name], host) if name in ENGINES else None
    if recipe is None:
        raise _unknown(name)
    if isinstance(recipe, str):
        raise CommandFailed(recipe)
    return recipe


def _unknown(name: str) -> CommandFailed:
    host = HostFacts(platform="", arch="", memory_mb=0)
    known = ", ".join(each for each in ENGINES if recipe_of(ENGINES[each], host) is not None)
    if name in ENGINES:
        return CommandFailed(f"engine {name} is not installed by this command; it has: {known}")
    return CommandFailed(f"no engine is named {name}; this command installs: {known}", code=2)


def _environments(context: Context) -> Environments:
    return Environments(context.settings.engines_dir, context.settings.environment())


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    try:
        yield
    except InstallFailed as failed:
        raise CommandFailed(str(failed)) from None
    except KeyboardInterrupt:
        raise CommandFailed("stopped; nothing was left behind", code=130) from None


@contextlib.contextmanager
def _shown(*, as_json: bool) -> Iterator[Report]:
    """Give what shows the progress: one line that changes on a terminal, else one now and then."""
    terminal = Console()
    if terminal.is_terminal and not as_json:
        with terminal.status("") as status:
            yield lambda step: status.update(escape(_line(step)))
        return
    shown_at, shown_what = -_LINE_EVERY_S, ""

    def write(step: Step) -> None:
        nonlocal shown_at, shown_what
        if step.what == shown_what and monotonic() < shown_at + _LINE_EVERY_S:
            return
        shown_at, shown_what = monotonic(), step.what
        values = {"phase": "installing", "what": step.what, "bytes_done": step.bytes_done}
        typer.echo(json.dumps(values) if as_json else _line(step))

    yield write


def _line(step: Step) -> str:
    return f"{step.what}, {gigabytes(step.bytes_done)} so far" if step.bytes_done else step.what
