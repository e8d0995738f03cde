"""Bringing a registry to the newest form: under a lock, in one transaction.

Alembic is loaded only where there is something to do: it takes 10 MB, and a third of the time of a start.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, column, inspect, select, table

from router import migrations
from router.store.database import file_of, open_database, use_wal
from router.store.errors import FILE, DamagedRegistry, NewerRegistry, not_migrated, translated

_FOLDER = Path(migrations.__file__).parent
_VERSION_TABLE = "alembic_version"


def migrate(url: str) -> None:
    """Make the registry at `url`, or upgrade it. Two processes at once take turns.

    Raises:
        StoreError: it can't be read or written.
        DamagedRegistry: the file is something else; it is left as it is.
        NewerRegistry: it was migrated by a newer version of this program.
    """
    with translated():
        path = file_of(url)
        if path is None:
            _upgrade(url)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            _create(path)
            use_wal(path)
            _upgrade(url)


def check(connection: Connection) -> None:
    """Do nothing if the registry has the newest form.

    Raises:
        NoRegistry: it is older, or was never made.
        NewerRegistry: it is newer than this program.
    """
    if _revision(connection) != known_revisions()[-1]:
        raise not_migrated()


def _upgrade(url: str) -> None:
    engine = open_database(url, is_writer=True)
    try:
        with engine.begin() as connection:
            if _revision(connection) != known_revisions()[-1]:
                _run_alembic(connection)
    finally:
        engine.dispose()


def _run_alembic(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415 - likewise

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def known_revisions() -> list[str]:
    """Return the revisions that this program knows, oldest first, as their files are called."""
    return sorted(path.name.split("_")[0] for path in (_FOLDER / "versions").glob("[0-9]*_*.py"))


def _revision(connection: Connection) -> str | None:
    """Return the registry's revision after checking that it is one we know."""
    tables = inspect(connection).get_table_names()
    revision: str | None = None
    if _VERSION_TABLE in tables:
        version = table(_VERSION_TABLE, column("version_num"))
        revision = connection.scalar(select(version.c.version_num))
    if revision is None:
        if tables:
            raise DamagedRegistry(f"{FILE} holds another program's tables; name another file")
        return None
    if revision not in known_revisions():
        raise NewerRegistry(
            "the registry was migrated by a newer version of this program; "
            f"upgrade the program, or name another file ({FILE})"
        )
    return revision


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create(path: Path) -> None:
    """Make an empty file that only its owner can read; SQLite gives its side files that mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    with suppress(PermissionError):
        path.chmod(0o600)
