"""API keys: `sk-iir-<public prefix>-<secret>`. The registry keeps the prefix and a digest.

A secret has 200 random bits, so one round of SHA-256 is enough to keep it: there is nothing to
guess, and nothing slow on the request path.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, or_, select, update

from router.domain import ApiKey, KeyId, Scope
from router.store.errors import InvalidValue, NameTaken, UnknownName
from router.store.names import label
from router.store.tables import api_keys
from router.store.versions import Version, bump
from shared.kit.clock import Clock, wall_time

_FORM: Final = re.compile(r"sk-iir-([a-z2-7]{8})-[a-z2-7]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """What may be shown of a key. Times are seconds since 1970."""

    name: str
    prefix: str
    scopes: frozenset[Scope]
    created_at: int
    revoked_at: int | None


def make_key() -> tuple[str, str, str]:
    """Return a new key, its public prefix and its digest."""
    prefix, secret = random_letters(5), random_letters(25)
    key = f"sk-iir-{prefix}-{secret}"
    return key, prefix, digest(key)


def parse_prefix(key: str) -> str | None:
    """Return the public prefix of a key, or None if the text has not the form of one."""
    found = _FORM.fullmatch(key)
    return found[1] if found else None


def digest(key: str) -> str:
    """Return the SHA-256 of the whole key, in hex; any text has one."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def create_key(
    connection: Connection,
    name: str,
    scopes: Collection[Scope],
    *,
    key: str | None = None,
    now: Clock = wall_time,
) -> str:
    """Make a key and return it; only now can it be seen. `key` is one of `make_key`, if there is one.

    Raises:
        InvalidValue: the name has a form that is not taken, or the scopes are not a key's.
    """
    if not scopes or Scope.AGENT in scopes:
        raise InvalidValue("a key has the scopes inference, admin or both; agents have credentials")
    key = key or make_key()[0]
    connection.execute(
        insert(api_keys).values(
            name=label(name, "key's name"),
            prefix=parse_prefix(key),
            digest=digest(key),
            scopes=sorted(scope.value for scope in scopes),
            created_at=int(now()),
        )
    )
    bump(connection, Version.CATALOG)
    return key


def revoke_key(connection: Connection, which: str, *, now: Clock = wall_time) -> KeyInfo:
    """Revoke the key that has `which` as its prefix or name, and return it.

    Raises:
        UnknownName: no key that is in force has it.
        NameTaken: several have this name.
    """
    # A whole key pasted here is taken for its prefix, and never repeated.
    wanted = parse_prefix(which) or which.removeprefix("sk-iir-")
    rows = connection.execute(
        select(api_keys).where(
            or_(api_keys.c.prefix == wanted, api_keys.c.name == which),
            api_keys.c.revoked_at.is_(None),
        )
    ).all()
    if not rows:
        raise UnknownName("no key in force has this name or prefix; `iir keys list` shows all")
    if len(rows) > 1:
        prefixes = ", ".join(row.prefix for row in rows)
        raise NameTaken(f"several keys have this name; revoke one by its prefix: {prefixes}")
    of_key = api_keys.c.id == rows[0].id
    connection.execute(update(api_keys).where(of_key).values(revoked_at=int(now())))
    bump(connection, Version.CATALOG)
    return _info(connection.execute(select(api_keys).where(of_key)).one())


def list_keys(connection: Connection) -> list[KeyInfo]:
    """Return all keys, revoked ones too, oldest first."""
    return [_info(row) for row in connection.execute(select(api_keys).order_by(api_keys.c.id))]


def keys_in_force(connection: Connection) -> list[ApiKey]:
    """Return the keys that requests may use."""
    rows = connection.execute(select(api_keys).where(api_keys.c.revoked_at.is_(None)))
    return [
        ApiKey(
            id=KeyId(f"key-{row.id}"),
            name=row.name,
            prefix=row.prefix,
            digest=row.digest,
            scopes=_scopes(row),
        )
        for row in rows
    ]


def was_ever_keyed(connection: Connection) -> bool:
    """Tell whether a key was ever made, in force or not: that ends open mode for good."""
    return connection.scalar(select(api_keys.c.id).limit(1)) is not None


def random_letters(length: int) -> str:
    """Return `length` random bytes as letters and digits; 5 bytes are 8 of them."""
    return base64.b32encode(secrets.token_bytes(length)).decode().lower()


def _scopes(row: Row[Any]) -> frozenset[Scope]:
    return frozenset(Scope(value) for value in row.scopes)


def _info(row: Row[Any]) -> KeyInfo:
    return KeyInfo(
        name=row.name,
        prefix=row.prefix,
        scopes=_scopes(row),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
