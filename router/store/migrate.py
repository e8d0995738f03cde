"""Bringing a registry to the newest form: under a lock, in one transaction."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from router import migrations
from router.store.database import file_of, open_database, use_wal
from router.store.errors import FILE, DamagedRegistry, NewerRegistry, not_migrated, translated


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
    if (
        _revision(connection, _config())
        != ScriptDirectory.from_config(_config()).get_current_head()
    ):
        raise not_migrated()


def _upgrade(url: str) -> None:
    engine = open_database(url, is_writer=True)
    try:
        config = _config()
        with engine.begin() as connection:
            _revision(connection, config)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def _config() -> Config:
    config = Config()
    folder = Path(migrations.__file__).parent
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config


def _revision(connection: Connection, config: Config) -> str | None:
    """Return the registry's revision after checking that it is one we know."""
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision is None:
        if inspect(connection).get_table_names():
            raise DamagedRegistry(f"{FILE} holds another program's tables; name another file")
        return None
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision not in known:
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
