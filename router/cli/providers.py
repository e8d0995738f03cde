"""`iir providers`: third parties as data."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from router.backends import BACKENDS
from router.cli.kept_names import forget, names
from router.cli.output import AsJson, CommandFailed, write_json, write_table
from router.cli.session import read, write
from router.cli.upstream_models import fetch_model_ids
from router.domain import LLMD, DeploymentEntry, Provider, Zone
from router.fleet.endpoints import ProviderEndpoints
from router.fleet.refusals import missing_setting
from router.settings import Settings, load_settings
from router.store import catalog
from router.store.agents import list_agents
from router.store.database import Connection
from router.store.errors import InvalidValue
from router.store.urls import normalise
from shared.contracts.apis import APIS
from shared.http.base_url import api_base

app = typer.Typer(help="Third parties as data: base URL, credential, zone.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(help="The provider's name.")]
_MaxInFlight = Annotated[
    int | None, typer.Option(help="How many requests it takes at once.", metavar="N")
]
_Api = Annotated[
    list[str] | None,
    typer.Option(help=f"An API it speaks ({', '.join(APIS)}); may be repeated.", metavar="NAME"),
]


@app.command()
def add(
    name: _Name,
    *,
    base_url: Annotated[
        str, typer.Option(help="Where its API is; `/v1` is appended if it has no path.")
    ],
    dialect: Annotated[str, typer.Option(help="The wire protocol it speaks.")] = "openai",
    zone: Annotated[Zone, typer.Option(help="Where a request's text goes.")] = Zone.CLOUD,
    key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the credential.")
    ] = None,
    max_in_flight: _MaxInFlight = None,
    api: _Api = None,
) -> None:
    """Add a provider."""
    if dialect not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise InvalidValue(f"no backend speaks the dialect {dialect!r}; known: {known}")
    provider = Provider(
        name=name,
        dialect=dialect,
        base_url=base_url,
        zone=zone,
        key_env=key_env,
        max_in_flight=max_in_flight,
        apis=tuple(api) if api else None,
    )
    settings = load_settings()
    write(lambda c: catalog.add_provider(c, provider), settings)
    typer.echo(f"provider {name} added")
    _note(provider, settings)


@app.command("set")
def set_command(
    name: _Name,
    *,
    base_url: Annotated[
        str | None, typer.Option(help="Where its API is now; what it is known to serve is kept.")
    ] = None,
    key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the credential.")
    ] = None,
    no_key_env: Annotated[
        bool, typer.Option("--no-key-env", help="It needs no credential.")
    ] = False,
    max_in_flight: _MaxInFlight = None,
    no_max_in_flight: Annotated[
        bool, typer.Option("--no-max-in-flight", help="Take any number at once.")
    ] = False,
    api: _Api = None,
    default_apis: Annotated[
        bool, typer.Option("--default-apis", help="Speak what its dialect does by default.")
    ] = False,
) -> None:
    """Change where a provider is, its credential, its limit, or which APIs it speaks; counts at once."""
    changes: dict[str, Any] = {} if base_url is None else {"base_url": base_url}
    for field, value, is_taken_back in (
        ("key_env", key_env, no_key_env),
        ("max_in_flight", max_in_flight, no_max_in_flight),
        ("apis", tuple(api) if api else None, default_apis),
    ):
        if value is not None and is_taken_back:
            raise InvalidValue("these options contradict each other: set it, or take it back")
        if value is not None or is_taken_back:
            changes[field] = value
    if not changes:
        raise InvalidValue("say what to set; `iir providers set --help` shows the options")

    def change(connection: Connection) -> Provider:
        found = replace(catalog.get_provider(connection, name), **changes)
        catalog.update_provider(connection, found)
        return catalog.get_provider(connection, name)

    settings = load_settings()
    now = write(change, settings)
    most = "no limit of" if now.max_in_flight is None else f"at most {now.max_in_flight}"
    apis = "its dialect's default" if now.apis is None else ", ".join(now.apis)
    where = f" at {now.base_url}" if now.base_url else ""
    typer.echo(f"provider {name}{where}: {most} requests in flight; APIs: {apis}")
    _note(now, settings)


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List the providers."""
    settings = load_settings()
    providers = read(catalog.list_providers, settings)
    if as_json:
        write_json([_as_json(provider, settings) for provider in providers])
        return
    write_table(
        ("name", "dialect", "base URL", "zone", "credential", "in flight", "APIs"),
        [
            (
                p.name,
                p.dialect,
                p.base_url or _address(p, settings),
                p.zone.value,
                _credential(p, settings),
                None if p.max_in_flight is None else f"at most {p.max_in_flight}",
                ", ".join(p.apis or ()),
            )
            for p in providers
        ],
        empty="no providers; `iir seed` adds the usual ones",
    )


@app.command()
def remove(name: _Name) -> None:
    """Remove a provider and its prefix rules."""
    write(lambda c: catalog.remove_provider(c, name))
    typer.echo(f"provider {name} removed")


@app.command()
def refresh(name: _Name) -> None:
    """Ask a provider for its models and add those whose names are new."""
    settings = load_settings()
    provider = read(lambda c: catalog.get_provider(c, name), settings)
    if provider.dialect not in {"openai", LLMD}:
        raise CommandFailed(f"provider {name!r} has no list of models that can be asked for")
    endpoint = ProviderEndpoints(settings)(provider)
    if endpoint is None:
        what, variable = missing_setting(provider)
        raise CommandFailed(f"provider {name!r} needs a {what}: set {variable}")
    ids = fetch_model_ids(
        name,
        f"{normalise(endpoint.base_url)}/models",
        endpoint.credential,
        by_proxy=provider.dialect != LLMD,  # as the router asks a cluster, which knows no proxies
    )
    added = write(lambda c: _add_new(c, name, ids), settings)
    left_out = len(ids) - added
    note = f"; left out, their names are in use: {left_out}" if left_out else ""
    typer.echo(f"models added: {added}{note}")


def _note(provider: Provider, settings: Settings) -> None:
    """Say what of the settings beats a row, or lacks."""
    endpoint = ProviderEndpoints(settings)(provider)
    if endpoint is None and provider.key_env is not None:
        typer.echo(
            f"{provider.key_env} is not set here: the router needs it to use {provider.name}",
            err=True,
        )
    elif (
        endpoint is not None
        and provider.base_url
        and endpoint.base_url != api_base(provider.base_url)
    ):
        typer.echo(f"the settings here beat its base URL, with {endpoint.base_url}", err=True)


app.command()(names)
app.command()(forget)


def _add_new(connection: Connection, provider: str, ids: list[str]) -> int:
    """Add the models whose names nobody has.

    A name that is in use stays as it is, also if only an agent has it: a second deployment could
    send to a cloud what was meant to stay local.
    """
    taken: set[str] = set()
    for agent in list_agents(connection):
        if agent.record.registration is not None:
            for model in agent.record.registration.models:
                taken.update((model.id, *model.aliases))
    added = 0
    for model_id in ids:
        if model_id not in taken and not catalog.is_name_taken(connection, model_id):
            entry = DeploymentEntry(provider=provider, upstream_name=model_id)
            catalog.add_model(connection, model_id, entry)
            added += 1
    return added


def _address(provider: Provider, settings: Settings) -> str | None:
    """Return the address of a provider whose address is a setting."""
    if provider.dialect != LLMD:
        return None
    return settings.llmd_endpoint or "LLMD_ENDPOINT (not set)"


def _credential(provider: Provider, settings: Settings) -> str | None:
    if provider.key_env is None:
        return None
    is_set = settings.credential(provider.key_env) is not None
    return f"{provider.key_env} ({'set' if is_set else 'not set'})"


def _as_json(provider: Provider, settings: Settings) -> dict[str, object]:
    has_credential = provider.key_env is None or settings.credential(provider.key_env) is not None
    return {
        "name": provider.name,
        "dialect": provider.dialect,
        "base_url": provider.base_url or None,
        "zone": provider.zone.value,
        "key_env": provider.key_env,
        "has_credential": has_credential,
        "max_in_flight": provider.max_in_flight,
        "apis": None if provider.apis is None else list(provider.apis),
    }
