"""`iir agents`: who may register as an agent, and who has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.cli.listing import agent_models, agent_state
from router.cli.output import AsJson, date, write_json, write_table
from router.cli.session import read, write
from router.cli.token_file import read_credential, write_credential
from router.settings import load_settings
from router.store import agents
from router.store.errors import NameTaken
from router.store.keys import make_key
from router.store.names import label
from shared.kit.clock import wall_time

app = typer.Typer(help="Agents, their credentials and their leases.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="The agent's name.")],
    token_file: Annotated[Path, typer.Option(help="Where its credential is kept.")],
    renew: Annotated[
        bool,
        typer.Option(
            "--renew", help="If the file is gone, make a new credential; the old one ends."
        ),
    ] = False,
) -> None:
    """Let an agent register with the credential in a file, which is made if it is not there.

    Doing it again changes nothing; a registry that lost the credential gets it back.
    """
    label(name, "agent's name")
    credential = read_credential(token_file)
    if credential is None:
        if not renew and write(lambda c: agents.is_in_force(c, name)):
            raise NameTaken(
                f"there is an agent {name!r} already, and the token file is not there; "
                "`--renew` makes a new credential and ends the old one"
            )
        credential, _, _ = make_key()
        # The file first: should the registry fail, the next run takes up what the file holds.
        write_credential(token_file, credential)
    known_as = write(lambda c: agents.ensure_agent(c, name, credential))
    typer.echo(f"agent {known_as} may register")


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List all agents, revoked ones too."""
    settings = load_settings()
    oldest = wall_time() - 2 * settings.router_lease_ttl_s
    found = read(agents.list_agents, settings)
    if as_json:
        write_json(
            [
                {
                    "name": agent.record.name,
                    "state": agent_state(agent, oldest),
                    "agent_id": agent.record.agent_id,
                    "models": [model.id for model in agent_models(agent)],
                    "key_prefix": agent.key_prefix,
                    "renewed_at": agent.renewed_at,
                    "created_at": agent.created_at,
                    "revoked_at": agent.revoked_at,
                }
                for agent in found
            ]
        )
        return
    write_table(
        ("name", "state", "models", "last heartbeat", "credential", "created"),
        [
            (
                agent.record.name,
                agent_state(agent, oldest),
                len(agent_models(agent)),
                date(agent.renewed_at),
                agent.key_prefix,
                date(agent.created_at),
            )
            for agent in found
        ],
        empty="no agents; `iir agents add NAME --token-file PATH` lets one register",
    )


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(help="The agent's name, or its credential's prefix.")],
) -> None:
    """Revoke an agent's credential; it gets no more traffic."""
    name = write(lambda c: agents.revoke_agent(c, which))
    typer.echo(f"agent {name} revoked")
