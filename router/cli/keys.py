"""`iir keys`: API keys."""

from __future__ import annotations

from typing import Annotated

import typer

from router.cli.output import AsJson, date, write_json, write_table
from router.cli.session import read, write
from router.domain import Scope
from router.store import keys
from router.store.agents import add_agent, credentials_in_force, name_in_force
from router.store.database import Connection
from router.store.errors import InvalidValue, UnknownName

app = typer.Typer(help="API keys: made, listed, revoked.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do; may be repeated.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Write the key alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown now and never again."""
    scopes = frozenset(scope or [Scope.INFERENCE])
    if Scope.AGENT in scopes and len(scopes) > 1:
        raise InvalidValue("an agent's credential has the scope agent alone; make two keys")

    def make(connection: Connection) -> tuple[str, bool]:
        was_open = not keys.was_ever_keyed(connection)
        if Scope.AGENT in scopes:
            return add_agent(connection, name), False
        return keys.create_key(connection, name, scopes), was_open

    key, is_first = write(make)
    names = sorted(one.value for one in scopes)
    if quiet:
        typer.echo(key)
    elif as_json:
        write_json({"name": name, "prefix": keys.parse_prefix(key), "scopes": names, "key": key})
    else:
        typer.echo(f"key of {name} ({', '.join(names)}); it is shown only now:\n{key}")
        if Scope.AGENT in scopes:
            text = f"`iir agents list` shows it, `iir agents revoke {name}` ends it."
            typer.echo(text, err=True)
        if is_first:
            typer.echo("From now on the router takes no request without a key.", err=True)


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List all keys by their public prefixes, revoked ones too; agents' are not among them."""
    found, of_agents = read(lambda c: (keys.list_keys(c), len(credentials_in_force(c))))
    if as_json:
        write_json(
            [
                {
                    "name": key.name,
                    "prefix": key.prefix,
                    "scopes": sorted(scope.value for scope in key.scopes),
                    "created_at": key.created_at,
                    "revoked_at": key.revoked_at,
                }
                for key in found
            ]
        )
        return
    write_table(
        ("name", "prefix", "scopes", "created", "revoked"),
        [
            (
                key.name,
                key.prefix,
                ", ".join(sorted(scope.value for scope in key.scopes)),
                date(key.created_at),
                date(key.revoked_at),
            )
            for key in found
        ],
        empty="no keys: the router is open to programs on this machine",
    )
    if of_agents:
        typer.echo(f"agents' credentials in force: {of_agents}; see `iir agents list`")


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(help="The key's prefix, or its name.")],
) -> None:
    """Revoke a key; running routers refuse it within a second."""

    def end(connection: Connection) -> keys.KeyInfo:
        try:
            return keys.revoke_key(connection, which)
        except UnknownName:
            agent = name_in_force(connection, which)
            if agent is None:
                raise
            raise UnknownName(
                f"this is the credential of the agent {agent}; `iir agents revoke {agent}` ends it"
            ) from None

    info = write(end)
    typer.echo(f"key {info.prefix} of {info.name} revoked")
