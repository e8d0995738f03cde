"""Agents: their credentials, what they registered, and their leases.

Functions take a connection inside a transaction. What an agent says counts up the lease version;
credentials count up the catalog's too, since requests are checked against the catalog.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection, Row, delete, insert, or_, select, update

from router.domain import AgentRecord, ApiKey, KeyId, Scope
from router.store.errors import (
    CredentialRefused,
    InvalidValue,
    NameTaken,
    Superseded,
    TooLate,
    UnknownName,
)
from router.store.keys import digest, make_key, parse_prefix
from router.store.names import label
from router.store.tables import agents, leases
from router.store.versions import Version, bump
from shared.contracts.agents import Heartbeat, Registration
from shared.kit.clock import Clock, wall_time

Message = TypeVar("Message", bound=BaseModel)

NO_NEXT: Final[dict[str, None]] = {
    "next_prefix": None,
    "next_digest": None,
    "next_agent_id": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentInfo:
    """An agent as a person wants to see it. Times are seconds since 1970."""

    record: AgentRecord
    key_prefix: str
    created_at: int
    revoked_at: int | None


def add_agent(connection: Connection, name: str, *, now: Clock = wall_time) -> str:
    """Add an agent and return its credential; only now can it be seen.

    Raises:
        InvalidValue: the name has a form that is not taken.
        NameTaken: an agent in force has this name.
    """
    if is_in_force(connection, name):
        raise NameTaken(f"there is an agent {name!r} already; `iir agents list` shows it")
    credential, _, _ = make_key()
    ensure_agent(connection, name, credential, now=now)
    return credential


def ensure_agent(
    connection: Connection, name: str, credential: str, *, now: Clock = wall_time
) -> str:
    """Let an agent register with `credential`; nothing changes if one may already.

    An agent of this name with another credential loses it, and its lease: this is the word of
    whoever owns the registry.

    Returns:
        The agent's name: `name`, or that under which the credential is known already (a host's
        name may change; its agent is still the same).

    Raises:
        InvalidValue: the name or the credential has a form that is not taken.
        CredentialRefused: the credential was revoked, or is a forged one.
    """
    prefix = parse_prefix(credential)
    if prefix is None:
        raise InvalidValue("this is no credential: it must read sk-iir-…")
    is_it = or_(agents.c.key_prefix == prefix, agents.c.next_prefix == prefix)
    found = connection.execute(select(agents).where(is_it)).one_or_none()
    if found is not None:
        _check(found, credential)
        return str(found.name)
    values: dict[str, Any] = {
        "key_prefix": prefix,
        "key_digest": digest(credential),
        "created_at": int(now()),
        "revoked_at": None,
        "agent_id": None,
        "incarnation": None,
        "registration": None,
        **NO_NEXT,
    }
    old = connection.scalar(select(agents.c.id).where(agents.c.name == label(name, "agent's name")))
    if old is None:
        connection.execute(insert(agents).values(name=name, **values))
    else:
        connection.execute(update(agents).where(agents.c.id == old).values(**values))
        connection.execute(delete(leases).where(leases.c.agent == old))
    bump(connection, Version.CATALOG, Version.LEASES)
    return name


def is_in_force(connection: Connection, name: str) -> bool:
    """Tell whether there is an agent of this name whose credential is not revoked."""
    found = select(agents.c.id).where(agents.c.name == name, agents.c.revoked_at.is_(None))
    return connection.scalar(found) is not None


def name_in_force(connection: Connection, which: str) -> str | None:
    """Return the name of the agent in force that has `which` as its name or key prefix."""
    found = _in_force(connection, which)
    return None if found is None else found[1]


def revoke_agent(connection: Connection, which: str, *, now: Clock = wall_time) -> str:
    """Revoke the credential of the agent with this name or key prefix; return its name.

    Raises:
        UnknownName: no agent in force has it.
    """
    found = _in_force(connection, which)
    if found is None:
        raise UnknownName("no agent in force has this name; `iir agents list` shows all")
    row_id, name = found
    ended = {"revoked_at": int(now()), **NO_NEXT}
    connection.execute(update(agents).where(agents.c.id == row_id).values(**ended))
    connection.execute(delete(leases).where(leases.c.agent == row_id))
    bump(connection, Version.CATALOG, Version.LEASES)
    return name


def list_agents(connection: Connection) -> list[AgentInfo]:
    """Return all agents, revoked ones too, by name."""
    joined = agents.outerjoin(leases)
    columns = (agents, leases.c.lease_id, leases.c.heartbeat, leases.c.updated_at)
    rows = connection.execute(select(*columns).select_from(joined).order_by(agents.c.name))
    return [
        AgentInfo(
            record=_record(row),
            key_prefix=row.key_prefix,
            created_at=row.created_at,
            revoked_at=row.revoked_at,
        )
        for row in rows
    ]


def credentials_in_force(connection: Connection) -> list[ApiKey]:
    """Return the agents' credentials as keys of the scope `agent`: the present ones, and the next."""
    rows = connection.execute(select(agents).where(agents.c.revoked_at.is_(None))).all()
    present = [_key(row, row.key_prefix, row.key_digest) for row in rows]
    following = [
        _key(row, row.next_prefix, row.next_digest, is_next=True)
        for row in rows
        if row.next_prefix is not None
    ]
    return present + following


def _key(row: Row[Any], prefix: str, key_digest: str, *, is_next: bool = False) -> ApiKey:
    return ApiKey(
        id=KeyId(f"agent-{row.id}"),
        name=row.name,
        prefix=prefix,
        digest=key_digest,
        scopes=frozenset({Scope.AGENT}),
        agent=str(row.id),
        is_next=is_next,
    )


def save_registration(
    connection: Connection,
    row_id: int,
    agent_id: str,
    registration: Registration,
    lease_id: str,
    *,
    now: Clock = wall_time,
) -> None:
    """Keep what an agent registered, and grant it the lease `lease_id`.

    The first registration with a credential binds `agent_id` to it.

    Raises:
        CredentialRefused: the credential is revoked or bound to another id, or the id to another
            credential.
        Superseded: a newer incarnation has registered.
        TooLate: a newer message of this incarnation was kept.
    """
    row = connection.execute(select(agents).where(agents.c.id == row_id)).one_or_none()
    if row is None or row.revoked_at is not None:
        raise CredentialRefused("the agent's credential is revoked")
    if row.agent_id is not None and row.agent_id != agent_id:
        raise CredentialRefused("the credential belongs to an agent with another id")
    _refuse_second_credential(connection, row_id, agent_id)
    if row.incarnation is not None and registration.incarnation < row.incarnation:
        raise Superseded("a newer incarnation of this agent has registered")
    if registration.incarnation == row.incarnation and registration.seq is not None:
        _refuse_late(connection, row_id, registration.seq)
    connection.execute(
        update(agents)
        .where(agents.c.id == row_id)
        .values(
            agent_id=agent_id,
            incarnation=registration.incarnation,
            registration=registration.model_dump_json(),
        )
    )
    connection.execute(delete(leases).where(leases.c.agent == row_id))
    connection.execute(
        insert(leases).values(
            agent=row_id, lease_id=lease_id, seq=registration.seq, updated_at=int(now())
        )
    )
    bump(connection, Version.LEASES)


def save_heartbeats(
    connection: Connection,
    heartbeats: Iterable[tuple[int, str, Heartbeat]],
    *,
    now: Clock = wall_time,
) -> None:
    """Keep each agent's newest heartbeat: `(row id, lease id, heartbeat)`.

    One for a lease that was replaced or given back is dropped, and so is one that comes late.
    """
    changed = 0
    for row_id, lease_id, heartbeat in heartbeats:
        result = connection.execute(
            update(leases)
            .where(leases.c.agent == row_id, leases.c.lease_id == lease_id)
            .where(or_(leases.c.seq.is_(None), leases.c.seq < heartbeat.seq))
            .values(seq=heartbeat.seq, heartbeat=heartbeat.model_dump_json(), updated_at=int(now()))
        )
        changed += result.rowcount
    if changed:
        bump(connection, Version.LEASES)


def release_lease(connection: Connection, row_id: int) -> None:
    """Take back an agent's lease; what it registered stays known."""
    if connection.execute(delete(leases).where(leases.c.agent == row_id)).rowcount:
        bump(connection, Version.LEASES)


def _in_force(connection: Connection, which: str) -> tuple[int, str] | None:
    """Return row id and name of the agent in force that has `which` as its name or key prefix."""
    # A whole credential pasted here is taken for its prefix, and never repeated.
    prefix = parse_prefix(which) or which.removeprefix("sk-iir-")
    row = connection.execute(
        select(agents.c.id, agents.c.name)
        .where(or_(agents.c.name == which, agents.c.key_prefix == prefix))
        .where(agents.c.revoked_at.is_(None))
        .limit(1)
    ).one_or_none()
    return None if row is None else (int(row.id), str(row.name))


def _check(row: Row[Any], credential: str) -> None:
    is_present = row.key_prefix == parse_prefix(credential)
    known = row.key_digest if is_present else row.next_digest
    if not hmac.compare_digest(known, digest(credential)):
        raise CredentialRefused("the credential is not the one that was given out")
    if row.revoked_at is not None:
        raise CredentialRefused(
            "the credential was revoked; delete its file, then `iir agents add` makes a new one"
        )


def _refuse_second_credential(connection: Connection, row_id: int, agent_id: str) -> None:
    other = connection.scalar(
        select(agents.c.name)
        .where(agents.c.agent_id == agent_id, agents.c.id != row_id)
        .where(agents.c.revoked_at.is_(None))
        .limit(1)
    )
    if other is not None:
        raise CredentialRefused(
            "the agent's id is bound to another credential; `iir agents revoke` frees it"
        )


def _refuse_late(connection: Connection, row_id: int, seq: int) -> None:
    kept = connection.scalar(select(leases.c.seq).where(leases.c.agent == row_id))
    if kept is not None and kept >= seq:
        raise TooLate("a newer message of this agent came before")


def _record(row: Row[Any]) -> AgentRecord:
    return AgentRecord(
        row_id=row.id,
        name=row.name,
        agent_id=row.agent_id,
        registration=_parsed(Registration, row.registration),
        lease_id=row.lease_id,
        heartbeat=_parsed(Heartbeat, row.heartbeat),
        renewed_at=row.updated_at,
    )


def _parsed(kind: type[Message], text: str | None) -> Message | None:
    # What another version wrote and this one can't read counts as not said: the agent says it
    # again within seconds, and one row must not hide all the others.
    if text is None:
        return None
    try:
        return kind.model_validate_json(text)
    except ValidationError:
        return None
