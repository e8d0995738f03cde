"""Opening the registry's database: one connection, pinned, opened again when its file changed."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from router.store.errors import StoreError, not_migrated, translated

__all__ = ["Connection", "Pinned", "file_of", "open_database", "use_wal"]

_BUSY_TIMEOUT_MS = 5000


def file_of(url: str) -> Path | None:
    """Return the database's file; None if the database is not SQLite.

    Raises:
        StoreError: the URL is malformed, or names a database in memory.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreError("DATABASE_URL is malformed; use sqlite:///PATH") from None
    if parsed.get_backend_name() != "sqlite":
        return None
    if not parsed.database or parsed.database == ":memory:":
        raise StoreError(
            "the registry needs a file: set SQLITE_DB_PATH, or DATABASE_URL=sqlite:///PATH"
        )
    return Path(parsed.database)


def open_database(url: str, *, is_writer: bool) -> Engine:
    """Return an SQLAlchemy engine whose transactions are real ones, also on SQLite.

    A writer's transactions begin with `BEGIN IMMEDIATE`: pysqlite by itself would begin late, and
    not at all for DDL. A reader's connection is on autocommit and can't write. Neither creates the
    file; `migrate` does.
    """
    path = file_of(url)
    # Parameters hold digests and agents' tokens: errors must not quote them.
    if path is None:
        return create_engine(url, hide_parameters=True, poolclass=NullPool)

    engine = create_engine(
        "sqlite://",
        creator=lambda: _connect(path, is_writer=is_writer),
        hide_parameters=True,
        poolclass=NullPool,
    )
    if is_writer:
        event.listen(engine, "begin", _begin_immediate)
    return engine


def use_wal(path: Path) -> None:
    """Let readers go on while one writes. Fails on a file that is no database; writes nothing."""
    with closing(_connect(path, is_writer=True)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


def _connect(path: Path, *, is_writer: bool) -> sqlite3.Connection:
    if is_writer:
        _make_writable_again(path)
    uri = f"file:{quote(str(path.absolute()))}?mode=rw"
    found = sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
    found.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    found.execute("PRAGMA foreign_keys = ON")
    if not is_writer:
        found.execute("PRAGMA query_only = ON")
    return found


def _make_writable_again(path: Path) -> None:
    """Give side files back the right to be written, if the registry's own file has it.

    SQLite makes them as the file is. Of one that was read-only for a while, they stay read-only,
    and with them the registry.
    """
    if not os.access(path, os.W_OK):
        return
    for side in (Path(f"{path}-shm"), Path(f"{path}-wal")):
        if not os.access(side, os.W_OK):
            with suppress(OSError):  # it is not there, or is somebody else's
                side.chmod(0o600)


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class Pinned:
    """One connection to the registry, kept until it fails or its file is replaced.

    Not for several threads at a time.
    """

    def __init__(self, url: str, *, is_writer: bool) -> None:
        """Open nothing yet."""
        self._url = url
        self._is_writer = is_writer
        self._connection: Connection | None = None
        self._identity: tuple[int, int] | None = None

    def get(self) -> tuple[Connection, bool]:
        """Return the connection, and whether it was opened just now.

        Raises:
            StoreError: there is no registry, or it can't be opened.
        """
        identity = self._file_identity()
        if self._connection is not None and identity == self._identity:
            return self._connection, False
        self.drop()
        with translated():
            options: dict[str, Any] = {} if self._is_writer else {"isolation_level": "AUTOCOMMIT"}
            engine = open_database(self._url, is_writer=self._is_writer)
            self._connection = engine.connect().execution_options(**options)
        self._identity = identity
        return self._connection, True

    def drop(self) -> None:
        """Close the connection, whatever state it is in; the next `get` opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _file_identity(self) -> tuple[int, int] | None:
        path = file_of(self._url)
        if path is None:
            return None
        with translated():
            try:
                # never opened: closing it would drop this process's locks on it (SQLite's "How To
                # Corrupt", 2.2), and other processes' last close would delete the log under us
                found = path.stat()
            except FileNotFoundError:
                raise not_migrated() from None
        return found.st_dev, found.st_ino
