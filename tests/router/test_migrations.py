"""Migrating: from nothing, twice, by two at once, killed in the middle, and over what is no registry."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from router import migrations
from router.domain import DeploymentEntry, ModelEntry, ModelName, Provider, Zone
from router.store.errors import DamagedRegistry, NewerRegistry, NoRegistry, StoreError
from router.store.migrate import check, known_revisions, migrate
from router.store.reader import RegistryReader
from router.store.tables import metadata

ROOT = Path(__file__).resolve().parents[2]

# Forks one migration per SQL statement, each killed just before that statement, the last one
# after them all; then migrates what is left. One interpreter that has migrated already, so that
# imports and compiled statements are paid for once.
KILLS = """
import os, signal, sqlite3, sys
from contextlib import closing
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from router.store.migrate import migrate

def killed_at(point, url):
    count = 0
    def before(*_):
        nonlocal count
        count += 1
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)
    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "commit", before)
    migrate(url)

def in_child(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def tables(path):
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {row[0] for row in rows}

migrate(f"sqlite:///{sys.argv[1]}/warm.db")
kills = 0
while True:
    path = Path(sys.argv[1]) / f"{kills}.db"
    url = f"sqlite:///{path}"
    ended = in_child(lambda: killed_at(kills + 1, url))
    if ended == 0:
        break
    assert ended == -signal.SIGKILL, ended
    assert tables(path) == set(), "half a migration stayed behind"
    assert in_child(lambda: migrate(url)) == 0, f"no restart after kill {kills}"
    assert "api_keys" in tables(path)
    kills += 1
print(kills)
"""


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def tables_of(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {row[0] for row in rows}


def python(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_makes_folder_and_private_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b 100%#.db"
    migrate(url_of(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.execute("UPDATE meta SET value = '7' WHERE key = 'lease_version'")
        connection.commit()
        for side in ("-wal", "-shm"):
            assert stat.S_IMODE(Path(f"{path}{side}").stat().st_mode) == 0o600


def test_makes_the_tables_that_the_code_knows(tmp_path: Path) -> None:
    migrate(url_of(tmp_path / "models.db"))
    engine = create_engine(url_of(tmp_path / "models.db"))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_tables_are_plain_sql_for_postgresql_too() -> None:
    for table in metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]  # untyped there


def old_registry(path: Path, revision: str) -> None:
    """Make a registry as an older version of the program left it."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    engine = create_engine(url_of(path))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


@pytest.mark.parametrize(
    ("base_url", "apis"),
    [
        ("https://api.openai.com", ("chat", "completions", "embeddings", "responses")),
        ("https://proxy.example/v1", None),
    ],
)
def test_upgrade_of_0001_keeps_its_rows(
    tmp_path: Path, base_url: str, apis: tuple[str, ...] | None
) -> None:
    path = tmp_path / "models.db"
    old_registry(path, "0001")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO providers VALUES ('openai', 'openai', ?, 'cloud', 'KEY', 7)", [base_url]
        )
        connection.execute("INSERT INTO models VALUES ('m', 8)")
        connection.execute(
            "INSERT INTO deployments VALUES ('m', 'openai', 'm-1', 9, 2.5, 4096, '[]', NULL, NULL)"
        )
        connection.execute(
            "INSERT INTO usage VALUES (1, 2.5, 'r', 'm', 'e', NULL, 'k', 1, 200, NULL, 3, 4, 5, 6)"
        )
        connection.commit()
    migrate(url_of(path))
    reader = RegistryReader(url_of(path))
    reader.run(check)
    catalog = reader.catalog()
    reader.close()
    assert catalog is not None
    assert catalog.version == 2, "running routers see that the catalog changed"
    assert catalog.providers["openai"] == Provider(
        name="openai",
        dialect="openai",
        base_url=base_url,
        zone=Zone.CLOUD,
        key_env="KEY",
        apis=apis,
    )
    place = DeploymentEntry(
        provider="openai", upstream_name="m-1", priority=9, weight=2.5, context_tokens=4096
    )
    assert catalog.models == (ModelEntry(id=ModelName("m"), created_at=8, deployments=(place,)),)
    with closing(sqlite3.connect(path)) as connection:
        [row] = connection.execute("SELECT * FROM usage").fetchall()
        assert row == (1, 2.5, "r", "m", "e", None, "k", 1, 200, None, 3, 4, 5.0, 6.0)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_migrations_are_plain_sql_for_postgresql_too() -> None:
    # Offline mode needs neither server nor driver: it writes what would be run.
    written = StringIO()
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    context = MigrationContext.configure(
        dialect_name="postgresql", opts={"as_sql": True, "output_buffer": written}
    )
    with Operations.context(context):
        for script in reversed(list(scripts.walk_revisions())):
            script.module.upgrade()
    sql = written.getvalue()
    assert "ADD COLUMN max_in_flight INTEGER" in sql
    assert "ADD COLUMN apis JSON" in sql
    assert "UPDATE providers SET apis = '[" in sql


def test_revisions_are_those_of_the_files_names() -> None:
    # so that a start can tell without Alembic that there is nothing to do
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert known_revisions() == [s.revision for s in reversed(list(scripts.walk_revisions()))]
    assert scripts.get_heads() == known_revisions()[-1:]


def test_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "models.db"
    migrate(url_of(path))
    before = path.read_bytes()
    migrate(url_of(path))
    assert path.read_bytes() == before


def test_check_tells_whether_it_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "models.db"
    path.touch()
    reader = RegistryReader(url_of(path))
    with pytest.raises(NoRegistry, match="iir migrate"):
        reader.run(check)
    migrate(url_of(path))
    reader.run(check)
    reader.close()


def test_newer_registry_is_refused_politely(tmp_path: Path) -> None:
    path = tmp_path / "models.db"
    migrate(url_of(path))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(NewerRegistry, match="newer version of this program"):
        migrate(url_of(path))


@pytest.mark.parametrize(
    "content", [b"garbage, and no database at all" * 200, b"SQLite format 3\0" * 64]
)
def test_what_is_no_database_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "models.db"
    path.write_bytes(content)
    with pytest.raises(DamagedRegistry, match="SQLITE_DB_PATH") as caught:
        migrate(url_of(path))
    assert path.read_bytes() == content
    assert str(tmp_path) not in str(caught.value)


def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "models.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    with pytest.raises(DamagedRegistry, match="another program"):
        migrate(url_of(path))
    assert tables_of(path) == {"photos"}


def test_folder_that_cannot_be_made_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="SQLITE_DB_PATH") as caught:
        migrate(url_of(tmp_path / "file" / "models.db"))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("no url", "malformed"),
        ("nosuchdb://host/name", "not known"),
        ("oracle+oracledb://host/name", "needs the driver oracledb"),
    ],
)
def test_urls_that_cannot_work(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        migrate(url)


@pytest.mark.slow
def test_two_at_once_take_turns(tmp_path: Path) -> None:
    url = url_of(tmp_path / "models.db")
    code = f"from router.store.migrate import migrate; migrate({url!r})"
    both = [python("-c", code) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
    assert "api_keys" in tables_of(tmp_path / "models.db")


@pytest.mark.slow
def test_killed_at_any_statement_it_restarts_whole(tmp_path: Path) -> None:
    process = python("-W", "error", "-c", KILLS, str(tmp_path))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert int(output) >= 20


@pytest.mark.slow
def test_works_from_a_folder_without_the_source_tree(tmp_path: Path) -> None:
    # As an installed wheel does: only the packages, and no alembic.ini.
    for package in ("router", "shared"):
        shutil.copytree(ROOT / package, tmp_path / package)
    url = url_of(tmp_path / "models.db")
    code = f"from router.store.migrate import migrate; migrate({url!r})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": os.defpath, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "models" in tables_of(tmp_path / "models.db")
