"""Reading the registry: whole snapshots, only when something has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy import Connection

from router.domain import Catalog, LeaseBook
from router.store.agents import credentials_in_force, list_agents
from router.store.catalog import list_models, list_prefix_rules, list_providers
from router.store.database import Pinned
from router.store.errors import Refusal, StoreError, damaged, translated
from router.store.keys import keys_in_force, was_ever_keyed
from router.store.known_models import list_forgotten
from router.store.versions import Version, current

T = TypeVar("T")

# The connection is on autocommit; a snapshot is read in a transaction begun by hand.
_BEGIN: Final = {"postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"}


class RegistryReader:
    """Reads the registry through one pinned connection that never writes.

    Not for several threads at a time. After a `StoreError` the next call tries anew.
    """

    def __init__(self, url: str) -> None:
        """Open nothing yet; `url` is SQLAlchemy's."""
        self._pinned = Pinned(url, is_writer=False)
        # By counter: SQLite's `data_version` and our own, as they stood when last looked at.
        self._seen: dict[Version, tuple[int | None, int]] = {}

    def catalog(self, known_version: int | None = None) -> Catalog | None:
        """Return the catalog, or None if it is still at `known_version`.

        A first call, and the first one after a failure or a replaced file, always return it.

        Raises:
            StoreError: the registry can't be read.
        """
        return self._if_changed(Version.CATALOG, known_version, load_catalog)

    def leases(self, known_version: int | None = None) -> LeaseBook | None:
        """Return all agents in force, or None if nothing changed; otherwise like `catalog`."""
        return self._if_changed(Version.LEASES, known_version, load_leases)

    def run(self, read: Callable[[Connection], T]) -> T:
        """Return what `read` finds in one read transaction.

        Raises:
            StoreError: the registry can't be read.
            Refusal: from `read`.
        """
        return self._guarded(lambda connection: _in_transaction(connection, read))

    def check_integrity(self) -> None:
        """Read the whole file and do nothing if it is intact. Slow where the ledger is long.

        Raises:
            StoreError: the registry can't be read.
            DamagedRegistry: it is not intact.
        """
        self._guarded(_check_integrity)

    def close(self) -> None:
        """Close the connection."""
        self._pinned.drop()

    def _if_changed(
        self, version: Version, known: int | None, load: Callable[[Connection], T]
    ) -> T | None:
        def look(connection: Connection) -> T | None:
            # First the cheap question: has anybody committed anything since we last looked?
            mark = _data_version(connection)
            seen = self._seen.get(version)
            if mark is not None and known is not None and seen == (mark, known):
                return None
            now, found = _in_transaction(
                connection, lambda c: _load_unless(c, version, known if seen else None, load)
            )
            self._seen[version] = (mark, now)
            return found

        return self._guarded(look)

    def _guarded(self, read: Callable[[Connection], T]) -> T:
        try:
            with translated():
                connection, is_new = self._pinned.get()
                if is_new:
                    self._seen.clear()
                return read(connection)
        except Refusal:
            raise
        except StoreError:
            self._pinned.drop()
            raise
        except (ValueError, TypeError) as error:
            self._pinned.drop()
            raise StoreError("the registry holds a value that this version can't read") from error


def load_catalog(connection: Connection) -> Catalog:
    """Return the whole catalog; within a transaction it is of one piece."""
    keys = [*keys_in_force(connection), *credentials_in_force(connection)]
    return Catalog(
        version=current(connection, Version.CATALOG),
        providers={provider.name: provider for provider in list_providers(connection)},
        models=tuple(list_models(connection)),
        prefix_rules=tuple(list_prefix_rules(connection)),
        keys={key.prefix: key for key in keys},
        forgotten=tuple(list_forgotten(connection)),
        is_open=not was_ever_keyed(connection),
    )


def load_leases(connection: Connection) -> LeaseBook:
    """Return all agents in force, with or without a lease."""
    return LeaseBook(
        version=current(connection, Version.LEASES),
        agents=tuple(a.record for a in list_agents(connection) if a.revoked_at is None),
    )


def _load_unless(
    connection: Connection, version: Version, known: int | None, load: Callable[[Connection], T]
) -> tuple[int, T | None]:
    now = current(connection, version)
    return now, None if now == known else load(connection)


def _in_transaction(connection: Connection, read: Callable[[Connection], T]) -> T:
    connection.exec_driver_sql(_BEGIN.get(connection.dialect.name, "BEGIN"))
    try:
        return read(connection)
    finally:
        connection.exec_driver_sql("ROLLBACK")


def _check_integrity(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        return
    if connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one() != "ok":
        raise damaged()


def _data_version(connection: Connection) -> int | None:
    if connection.dialect.name != "sqlite":
        return None
    return int(connection.exec_driver_sql("PRAGMA data_version").scalar_one())
