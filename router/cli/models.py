"""`iir models`: the registry's models, and those that agents registered."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from router.cli.clusters import cluster_models
from router.cli.listing import ListedModel, in_clusters, list_served
from router.cli.output import AsJson, write_json, write_table
from router.cli.session import read, write
from router.domain import LLMD, DeploymentEntry, Provider, Slo, TimeLimits
from router.fleet.endpoints import ProviderEndpoints
from router.settings import load_settings
from router.store import catalog
from router.store.agents import list_agents
from router.store.database import Connection
from router.store.deployed import set_cluster_fields
from router.store.errors import InvalidValue
from shared.kit.clock import wall_time

app = typer.Typer(help="Models, their aliases and where they are served.", no_args_is_help=True)

_OBJECTIVE = "In an llm-d cluster: the InferenceObjective of its requests."
_BASE = "In an llm-d cluster with several pools: the model by which its pool is found."
_TTFT = "In an llm-d cluster: ms until the first token that its picker aims at."
_TPOT = "In an llm-d cluster: ms per further token that its picker aims at."
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
    objective: Annotated[
        str | None, typer.Option(help=f"{_OBJECTIVE} By default none.", metavar="NAME")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help=f"{_BASE} By default its name there.", metavar="NAME")
    ] = None,
    slo_ttft_ms: Annotated[
        int | None, typer.Option(help=f"{_TTFT} By default none.", metavar="MS")
    ] = None,
    slo_tpot_ms: Annotated[
        int | None, typer.Option(help=f"{_TPOT} By default none.", metavar="MS")
    ] = None,
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
        objective=objective,
        base_model=base_model,
        slo=Slo(ttft_ms=slo_ttft_ms, tpot_ms=slo_tpot_ms),
    )
    write(lambda c: catalog.add_model(c, model_id, entry, aliases=alias or ()))
    typer.echo(f"model {model_id} added on {provider}")


@app.command("set")
def set_command(
    model_id: _Id,
    *,
    provider: Annotated[str, typer.Option(help="The llm-d cluster that serves it.")] = LLMD,
    objective: Annotated[str | None, typer.Option(help=_OBJECTIVE, metavar="NAME")] = None,
    no_objective: Annotated[
        bool, typer.Option("--no-objective", help="Send no objective: priority 0.")
    ] = False,
    base_model: Annotated[str | None, typer.Option(help=_BASE, metavar="NAME")] = None,
    no_base_model: Annotated[
        bool, typer.Option("--no-base-model", help="Its pool is found by its name there.")
    ] = False,
    slo_ttft_ms: Annotated[int | None, typer.Option(help=_TTFT, metavar="MS")] = None,
    slo_tpot_ms: Annotated[int | None, typer.Option(help=_TPOT, metavar="MS")] = None,
    no_slo: Annotated[bool, typer.Option("--no-slo", help="Send neither of these.")] = False,
) -> None:
    """Change what an llm-d cluster is told of a model's requests."""
    change: dict[str, str | int | None] = {}
    given: str | int | None
    for field, given, is_taken_back in (
        ("objective", objective, no_objective),
        ("base_model", base_model, no_base_model),
        ("slo_ttft_ms", slo_ttft_ms, no_slo),
        ("slo_tpot_ms", slo_tpot_ms, no_slo),
    ):
        if given is not None and is_taken_back:
            raise InvalidValue("these options contradict each other: set it, or take it back")
        if given is not None or is_taken_back:
            change[field] = given
    if not change:
        raise InvalidValue("say what to set; `iir models set --help` shows the options")
    now = write(lambda c: set_cluster_fields(c, model_id, provider, change))
    base = now.base_model or now.upstream_name
    aims = "; ".join([f"base model {base}", *_aims(now.slo)])
    typer.echo(f"model {model_id} on {provider}: objective {now.objective or '-'}; {aims}")


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List all models: where each is served, and how it stands."""
    settings = load_settings()
    oldest = wall_time() - 2 * settings.router_lease_ttl_s
    endpoint_of = ProviderEndpoints(settings)

    def fetch(connection: Connection) -> tuple[list[ListedModel], list[Provider]]:
        providers = catalog.list_providers(connection)
        served = list_served(
            catalog.list_models(connection),
            providers,
            list_agents(connection),
            is_usable=lambda p: endpoint_of(p) is not None,
            oldest=oldest,
        )
        return served, providers

    served, providers = read(fetch, settings)
    found, problems = cluster_models(providers, settings)
    for problem in problems.values():
        typer.echo(f"{problem}; of its models only those with a row are listed", err=True)
    rows = in_clusters(served, found)
    if as_json:
        write_json([asdict(row) for row in rows])
        return
    has_aims = any(r.objective or r.slo != Slo() for r in rows)
    special = "time limits, objective" if has_aims else "time limits"
    write_table(
        ("id", "aliases", "served by", "zone", "status", "context", special),
        [
            (
                r.id,
                ", ".join(r.aliases),
                r.served_by,
                r.zone,
                r.status,
                r.context_tokens,
                _special(r),
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


def _aims(slo: Slo) -> list[str]:
    found = (("TTFT", slo.ttft_ms), ("TPOT", slo.tpot_ms))
    return [f"{name} {ms} ms" for name, ms in found if ms is not None]


def _special(row: ListedModel) -> str:
    found = asdict(row.limits).items()
    limits = [f"{name[:-2]} {value:g} s" for name, value in found if value is not None]
    objective = [f"objective {row.objective}"] if row.objective else []
    return ", ".join([*limits, *objective, *_aims(row.slo)])
