"""Joining: one-time tokens, and credentials that follow one another.

Functions take a connection inside a transaction; of two that race for a token one gets it, and the
other changes nothing.

An agent that has a credential already keeps it beside the new one until the new one is used: the
answer that holds the new one may be lost, and must not lock the agent out.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, insert, or_, select, update

from router.domain import ShownCredential
from router.store.agents import NO_NEXT, ensure_agent, is_in_force
from router.store.errors import CredentialRefused, InvalidValue, NameTaken, TokenRefused
from router.store.keys import digest, make_key, random_letters
from router.store.names import label
from router.store.tables import agents, invitations, leases
from router.store.versions import Version, bump
from shared.kit.clock import Clock, wall_time

LONGEST_S: Final = 7 * 86400
_KEPT_S: Final = 86400
_FORM: Final = re.compile(r"iir-join-([a-z2-7]{8})-[a-z2-7]{40}")
_START: Final = "iir-join-"
_NOBODY: Final = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """What may be shown of a join token; times are seconds since 1970. `name`: the agent's, if set."""

    prefix: str
    name: str | None
    created_at: int
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """An agent's name and its new credential; only now can that be seen."""

    name: str
    credential: str = field(repr=False)


def invite(
    connection: Connection, name: str | None, lasts_s: float, *, now: Clock = wall_time
) -> tuple[str, Invitation]:
    """Make a token by which one agent may join, and return it; only now can it be seen.

    Args:
        connection: the registry's.
        name: what the agent will be called; None: as it calls itself. If there is an agent of this
            name, the token gives it a new credential.
        lasts_s: how long the token may be used, in seconds.
        now: tells the time.

    Raises:
        InvalidValue: the name has a form that is not taken, or the time is none.
    """
    if not 1 <= lasts_s <= LONGEST_S:
        raise InvalidValue("an invitation lasts from 1 second to 7 days")
    if name is not None:
        label(name, "agent's name")
    made_at = int(now())
    connection.execute(delete(invitations).where(invitations.c.expires_at < made_at - _KEPT_S))
    prefix = random_letters(5)
    token = f"{_START}{prefix}-{random_letters(25)}"
    shown = Invitation(
        prefix=prefix, name=name, created_at=made_at, expires_at=made_at + int(lasts_s)
    )
    connection.execute(
        insert(invitations).values(
            prefix=prefix,
            digest=digest(token),
            name=name,
            created_at=shown.created_at,
            expires_at=shown.expires_at,
        )
    )
    return token, shown


def open_invitations(connection: Connection, *, now: Clock = wall_time) -> list[Invitation]:
    """Return the invitations that can still be used, oldest first."""
    rows = connection.execute(
        select(invitations)
        .where(invitations.c.used_at.is_(None), invitations.c.expires_at > int(now()))
        .order_by(invitations.c.created_at, invitations.c.prefix)
    )
    return [
        Invitation(
            prefix=row.prefix, name=row.name, created_at=row.created_at, expires_at=row.expires_at
        )
        for row in rows
    ]


def withdraw(connection: Connection, which: str) -> int:
    """Take back the unused invitations for this agent's name or with this prefix; return how many."""
    found = _FORM.fullmatch(which)  # a whole token pasted here is taken for its prefix
    prefix = found[1] if found else which.removeprefix(_START)
    is_it = or_(invitations.c.name == which, invitations.c.prefix == prefix)
    taken = connection.execute(
        delete(invitations).where(is_it, invitations.c.used_at.is_(None))
    ).rowcount
    return int(taken)


def join(
    connection: Connection,
    token: str,
    name: str,
    present: ShownCredential | None = None,
    *,
    now: Clock = wall_time,
) -> Joined:
    """Use a token up, and return the new credential of the agent that gave it.

    Args:
        connection: the registry's.
        token: the invitation's token.
        name: what the agent calls itself; an invitation for a name overrules it.
        present: what the agent showed, if it has a credential that is in force.
        now: tells the time.

    Raises:
        TokenRefused: it is unknown, used or expired.
        InvalidValue: the name has a form that is not taken; the token is not used up.
        NameTaken: another agent has the name; the token is not used up.
        CredentialRefused: the shown credential has ended meanwhile; the token is not used up.
    """
    used_at = int(now())
    invitation = _find(connection, token, used_at)
    if present is not None:
        joined = _join_again(connection, present, invitation.name)
    else:
        joined = _join_as(connection, invitation.name, label(name, "agent's name"), now)
    is_it = (invitations.c.prefix == invitation.prefix, invitations.c.used_at.is_(None))
    taken = connection.execute(update(invitations).where(*is_it).values(used_at=used_at)).rowcount
    if taken != 1:  # PostgreSQL has several writers; what was written above is rolled back
        raise _used()
    return joined


def rotate(connection: Connection, present: ShownCredential) -> Joined:
    """Return a new credential for an agent; the present one ends when the new one is used.

    A new one that was never used is replaced: its answer was lost.

    Raises:
        CredentialRefused: the agent was revoked, or the shown credential has ended.
    """
    row = _shown(connection, present)
    return _follow(connection, row, agent_id=row.agent_id)


def promote(connection: Connection, present: ShownCredential) -> bool:
    """Let an agent's next credential, if it is what the agent showed, be its only one.

    Returns:
        Whether it was; False if it is already.
    """
    row_id = present.row_id
    is_it = (
        agents.c.id == row_id,
        agents.c.next_prefix == present.prefix,
        agents.c.revoked_at.is_(None),
    )
    row = connection.execute(select(agents).where(*is_it)).one_or_none()
    if row is None:
        return False
    values: dict[str, Any] = {
        "key_prefix": row.next_prefix,
        "key_digest": row.next_digest,
        "agent_id": row.next_agent_id,
        **NO_NEXT,
    }
    versions = [Version.CATALOG]
    if row.next_agent_id != row.agent_id:  # another agent has this name from now on
        values.update(incarnation=None, registration=None)
        connection.execute(delete(leases).where(leases.c.agent == row_id))
        versions.append(Version.LEASES)
    connection.execute(update(agents).where(agents.c.id == row_id).values(**values))
    bump(connection, *versions)
    return True


def _find(connection: Connection, token: str, now_s: int) -> Row[Any]:
    form = _FORM.fullmatch(token)
    row = None
    if form is not None:
        is_it = invitations.c.prefix == form[1]
        row = connection.execute(select(invitations).where(is_it)).one_or_none()
    # an unknown prefix costs the same comparison as a known one
    known = _NOBODY if row is None else row.digest
    if not hmac.compare_digest(known, digest(token)) or row is None:
        raise TokenRefused("this is no join token of this router, or it was withdrawn")
    if row.used_at is not None:
        raise _used()
    if row.expires_at <= now_s:
        raise TokenRefused("this join token has expired")
    return row


def _used() -> TokenRefused:
    return TokenRefused("this join token was used already")


def _join_again(connection: Connection, present: ShownCredential, wanted: str | None) -> Joined:
    row = _shown(connection, present)
    if wanted is not None and wanted != row.name:
        raise NameTaken(
            f"the invitation is for an agent {wanted!r}, and this one is {row.name!r} already; "
            "`iir agents revoke` ends that"
        )
    return _follow(connection, row, agent_id=row.agent_id)


def _join_as(connection: Connection, wanted: str | None, called: str, now: Clock) -> Joined:
    name = called if wanted is None else wanted
    if not is_in_force(connection, name):
        credential, _, _ = make_key()
        ensure_agent(connection, name, credential, now=now)
        return Joined(name=name, credential=credential)
    if wanted is None:
        raise NameTaken(
            f"there is an agent {name!r} already; choose another name, or have a token made for "
            f"it: iir agents invite --name {name}"
        )
    row = connection.execute(select(agents).where(agents.c.name == name)).one()
    return _follow(connection, row, agent_id=None)


def _follow(connection: Connection, row: Row[Any], *, agent_id: str | None) -> Joined:
    credential, prefix, key_digest = make_key()
    connection.execute(
        update(agents)
        .where(agents.c.id == row.id)
        .values(next_prefix=prefix, next_digest=key_digest, next_agent_id=agent_id)
    )
    bump(connection, Version.CATALOG)
    return Joined(name=row.name, credential=credential)


def _shown(connection: Connection, present: ShownCredential) -> Row[Any]:
    """Return the row of an agent that showed a credential; a next one becomes the present one.

    The snapshot by which it was let in may be older than this transaction.
    """
    promote(connection, present)
    is_it = (
        agents.c.id == present.row_id,
        agents.c.key_prefix == present.prefix,
        agents.c.revoked_at.is_(None),
    )
    row = connection.execute(select(agents).where(*is_it)).one_or_none()
    if row is None:
        raise CredentialRefused("the agent's credential is revoked or has been replaced")
    return row
