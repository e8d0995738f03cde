"""`iir models`: the registry's models, and those that agents registered."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from router.cli.listing import ListedModel, list_served
from router.cli.output import AsJson, write_json, write_table
from router.cli.session import read, write
from router.domain import DeploymentEntry, TimeLimits
from router.settings import load_settings
from router.store import catalog
from router.store.agents import list_agents
from router.store.database import Connection
from shared.kit.clock import wall_time

app = typer.Typer(help="Models, their aliases and where they are served.", no_args_is_help=True)

_Id = Annotated[str, typer.Argument(help="The model's public id.", metavar="ID")]


def _limit(what: str) -> Any:
    return typer.Option(help=f"Seconds {what}; by default as the router is set.", metavar="S")


@app.command()
def add(
    model_id: _Id,
    *,
    provider: Annotated[str, typer.Option(help="Where it is served; `local` means agents.")],
    upstream_name: Annotated[
        str | None, typer.Option(help="What it is called there, if not the same.")
    ] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another name; may be repeated.")] = None,
    priority: Annotated[int, typer.Option(help="Lower goes first.", min=0, max=1_000_000)] = 100,
    weight: Annotated[
        float, typer.Option(help="Its share among those of one priority; 2 takes twice as much.")
    ] = 1.0,
    connect_s: Annotated[float | None, _limit("to connect")] = None,
    first_byte_s: Annotated[float | None, _limit("until the first byte")] = None,
    idle_s: Annotated[float | None, _limit("between two chunks")] = None,
    total_s: Annotated[float | None, _limit("in all")] = None,
) -> None:
    """Add a model, or another place that serves it."""
    entry = DeploymentEntry(
        provider=provider,
        upstream_name=upstream_name or model_id,
        priority=priority,
        weight=weight,
        limits=TimeLimits(
            connect_s=connect_s, first_byte_s=first_byte_s, idle_s=idle_s, total_s=total_s
        ),
    )
    write(lambda c: catalog.add_model(c, model_id, entry, aliases=alias or ()))
    typer.echo(f"model {model_id} added on {provider}")


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List all models: where each is served, and how it stands."""
    settings = load_settings()
    oldest = wall_time() - 2 * settings.router_lease_ttl_s

    def fetch(connection: Connection) -> list[ListedModel]:
        return list_served(
            catalog.list_models(connection),
            catalog.list_providers(connection),
            list_agents(connection),
            has_credential=lambda p: not p.key_env or settings.credential(p.key_env) is not None,
            oldest=oldest,
        )

    rows = read(fetch, settings)
    if as_json:
        write_json([asdict(row) for row in rows])
        return
    write_table(
        ("id", "aliases", "served by", "zone", "status", "context", "time limits"),
        [
            (
                r.id,
                ", ".join(r.aliases),
                r.served_by,
                r.zone,
                r.status,
                r.context_tokens,
                _limits(r.limits),
            )
            for r in rows
        ],
        empty="no models; start an agent, or add one: iir models add ID --provider NAME",
    )


@app.command()
def remove(model_id: _Id) -> None:
    """Remove a model from the registry, everywhere, with its aliases."""
    write(lambda c: catalog.remove_model(c, model_id))
    typer.echo(f"model {model_id} removed")


def _limits(limits: TimeLimits) -> str:
    found = asdict(limits).items()
    return ", ".join(f"{name[:-2]} {value:g} s" for name, value in found if value is not None)
