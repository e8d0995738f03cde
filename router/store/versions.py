"""The two counters that tell readers what has changed."""

from __future__ import annotations

from enum import Enum

from sqlalchemy import BigInteger, Connection, String, cast, select, update

from router.store.errors import not_migrated
from router.store.tables import meta


class Version(str, Enum):
    """A counter in `meta`."""

    CATALOG = "catalog_version"
    LEASES = "lease_version"


def bump(connection: Connection, *versions: Version) -> None:
    """Count up `versions`, in the transaction that makes the change."""
    for version in versions:
        grown = cast(cast(meta.c.value, BigInteger) + 1, String(320))
        connection.execute(update(meta).where(meta.c.key == version.value).values(value=grown))


def current(connection: Connection, version: Version) -> int:
    """Return where `version` stands.

    Raises:
        NoRegistry: the counter is not there.
    """
    found = connection.scalar(select(meta.c.value).where(meta.c.key == version.value))
    if found is None:
        raise not_migrated()
    return int(found)
