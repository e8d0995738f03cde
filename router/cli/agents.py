"""`iir agents`: who may register as an agent, and who has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.cli.joining import invite
from router.cli.listing import agent_models, agent_state
from router.cli.output import AsJson, date, write_json, write_table
from router.cli.session import read, write
from router.settings import load_settings
from router.store import agents, joining
from router.store.database import Connection
from router.store.errors import NameTaken, UnknownName
from router.store.keys import make_key
from router.store.names import label
from router.store.secret_file import read_secret, write_secret
from shared.kit.clock import wall_time

_FILE = "token file"

app = typer.Typer(help="Agents, their credentials and their leases.", no_args_is_help=True)
app.command()(invite)


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
    credential = read_secret(token_file, _FILE)
    if credential is None:
        if not renew and write(lambda c: agents.is_in_force(c, name)):
            raise NameTaken(
                f"there is an agent {name!r} already, and the token file is not there; "
                "`--renew` makes a new credential and ends the old one"
            )
        credential, _, _ = make_key()
        # The file first: should the registry fail, the next run takes up what the file holds.
        write_secret(token_file, credential, _FILE)
    known_as = write(lambda c: agents.ensure_agent(c, name, credential))
    typer.echo(f"agent {known_as} may register")


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List all agents, revoked ones too."""
    settings = load_settings()
    oldest = wall_time() - 2 * settings.router_lease_ttl_s
    found, invited = read(lambda c: (agents.list_agents(c), joining.open_invitations(c)), settings)
    if as_json:
        write_json(
            [
                {
                    "name": agent.record.name,
                    "state": agent_state(agent, oldest),
                    "reason": _reason(agent),
                    "power": _power(agent),
                    "agent_id": agent.record.agent_id,
                    "models": [model.id for model in agent_models(agent)],
                    "capacity": _capacity(agent),
                    "key_prefix": agent.key_prefix,
                    "renewed_at": agent.record.renewed_at,
                    "created_at": agent.created_at,
                    "revoked_at": agent.revoked_at,
                }
                for agent in found
            ]
        )
        return
    write_table(
        ("name", "state", "models", "free memory", "last heartbeat", "credential", "created"),
        [
            (
                agent.record.name,
                _state(agent, oldest),
                len(agent_models(agent)),
                _free(agent),
                date(agent.record.renewed_at),
                agent.key_prefix,
                date(agent.created_at),
            )
            for agent in found
        ],
        empty="no agents; `iir agents invite` makes a token by which one joins",
    )
    for invitation in invited:
        whose = "any agent" if invitation.name is None else invitation.name
        until = date(invitation.expires_at)
        typer.echo(f"invited: {whose}, token iir-join-{invitation.prefix}-…, until {until} (UTC)")


def _reason(agent: agents.AgentInfo) -> str | None:
    """Return why an agent's host makes it drain, as it last told."""
    heartbeat = agent.record.heartbeat
    return None if heartbeat is None else heartbeat.reason


def _state(agent: agents.AgentInfo, oldest: float) -> str:
    """Return how an agent stands, with its host's reason if it drains for one."""
    state, reason = agent_state(agent, oldest), _reason(agent)
    return f"{state}: {reason}" if state == "draining" and reason else state


def _power(agent: agents.AgentInfo) -> dict[str, object] | None:
    """Return what an agent's host last ran on; None if it did not tell."""
    heartbeat = agent.record.heartbeat
    found = None if heartbeat is None else heartbeat.power
    return None if found is None else found.model_dump()


def _capacity(agent: agents.AgentInfo) -> dict[str, int] | None:
    """Return what the agent last told of its memory, in bytes; None if it did not."""
    heartbeat = agent.record.heartbeat
    found = None if heartbeat is None else heartbeat.capacity
    return None if found is None else found.model_dump()


def _free(agent: agents.AgentInfo) -> str | None:
    found = _capacity(agent)
    if found is None:
        return None
    return f"{found['free_bytes'] / 2**30:.1f} of {found['budget_bytes'] / 2**30:.1f} GiB"


@app.command()
def revoke(
    which: Annotated[
        str, typer.Argument(help="The agent's name, its credential's or its token's prefix.")
    ],
) -> None:
    """Revoke an agent's credential and what invites it; it gets no more traffic."""
    name, withdrawn = write(lambda c: _revoke(c, which))
    if name is not None:
        typer.echo(f"agent {name} revoked")
    if withdrawn:
        typer.echo(f"{withdrawn} unused invitation{'s' if withdrawn > 1 else ''} withdrawn")


def _revoke(connection: Connection, which: str) -> tuple[str | None, int]:
    """Revoke an agent or, if there is none of this name, its invitations alone."""
    withdrawn = joining.withdraw(connection, which)
    try:
        name = agents.revoke_agent(connection, which)
    except UnknownName:
        if not withdrawn:
            raise
        return None, withdrawn
    # it may have been named by its credential's prefix
    return name, withdrawn + joining.withdraw(connection, name)
