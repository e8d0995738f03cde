"""Reading and writing the registry: changes are seen, failures are named and heal."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, text, update
from sqlalchemy.engine import Engine

from router.domain import PrefixRule, Provider, Scope, Zone
from router.store import catalog, keys
from router.store.errors import DamagedRegistry, NoRegistry, Refusal, StoreError, UnknownName
from router.store.migrate import migrate
from router.store.reader import RegistryReader
from router.store.tables import providers
from router.store.versions import Version, bump, current
from router.store.writer import RegistryWriter

ACME = Provider(name="acme", dialect="openai", base_url="https://acme.example", zone=Zone.CLOUD)


@pytest.fixture
def statements() -> Iterator[list[str]]:
    seen: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


def add_acme(connection: Connection) -> None:
    catalog.add_provider(connection, ACME)


def add_acme_and_rule(connection: Connection) -> None:
    add_acme(connection)
    catalog.add_prefix_rule(connection, PrefixRule("a-", "acme"))


def test_catalog_is_read_once_per_change(
    reader: RegistryReader, writer: RegistryWriter, statements: list[str]
) -> None:
    first = reader.catalog(None)
    assert first is not None
    assert first.is_open
    statements.clear()
    assert reader.catalog(first.version) is None
    assert statements == ["PRAGMA data_version"]

    writer.run_sync(add_acme)
    second = reader.catalog(first.version)
    assert second is not None
    assert second.version > first.version
    assert second.providers == {"acme": ACME}
    assert reader.catalog(second.version) is None
    assert reader.catalog(first.version) == second, "who knows an older one gets the newest"
    assert reader.catalog(None) == second


def test_lease_change_does_not_read_the_catalog(
    reader: RegistryReader, writer: RegistryWriter, statements: list[str]
) -> None:
    catalog_now, leases_now = reader.catalog(), reader.leases()
    assert catalog_now is not None
    assert leases_now is not None
    writer.run_sync(lambda c: bump(c, Version.LEASES))
    statements.clear()
    assert reader.catalog(catalog_now.version) is None
    assert not any("providers" in statement for statement in statements)
    changed = reader.leases(leases_now.version)
    assert changed is not None
    assert changed.version == leases_now.version + 1
    assert reader.leases(changed.version) is None


def test_catalog_is_of_one_piece(
    path: Path, reader: RegistryReader, writer: RegistryWriter
) -> None:
    # A change committed in the middle of a read must not be half in the snapshot.
    is_done = False

    def change(_c: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal is_done
        if "FROM providers" in statement and threading.current_thread() is here and not is_done:
            is_done = True
            writer.run_sync(add_acme_and_rule)

    here = threading.current_thread()
    event.listen(Engine, "after_cursor_execute", change)
    try:
        found = reader.catalog()
    finally:
        event.remove(Engine, "after_cursor_execute", change)
    assert is_done
    assert found is not None
    assert (found.providers, found.prefix_rules) == ({}, ())
    later = reader.catalog(found.version)
    assert later is not None
    assert later.prefix_rules == (PrefixRule("a-", "acme"),)


def test_reader_cannot_write(reader: RegistryReader) -> None:
    with pytest.raises(StoreError, match="readonly"):
        reader.run(lambda c: bump(c, Version.CATALOG))
    assert reader.catalog() is not None


def test_refusal_leaves_the_connection_open(reader: RegistryReader, statements: list[str]) -> None:
    found = reader.catalog()
    with pytest.raises(UnknownName):
        reader.run(lambda c: catalog.get_provider(c, "nobody"))
    assert found is not None
    assert reader.catalog(found.version) is None


def test_file_replaced_by_another_registry(
    path: Path, tmp_path: Path, reader: RegistryReader, writer: RegistryWriter
) -> None:
    other_path = tmp_path / "other.db"
    migrate(f"sqlite:///{other_path}")
    other = RegistryWriter(f"sqlite:///{other_path}")
    other.run_sync(add_acme)
    other.close()
    before = reader.catalog()
    writer.run_sync(lambda c: bump(c, Version.CATALOG))
    assert before is not None
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    other_path.replace(path)
    # Both stand at the same version, and yet it is another catalog.
    found = reader.catalog(before.version + 1)
    assert found is not None
    assert found.version == before.version + 1
    assert found.providers == {"acme": ACME}
    writer.run_sync(lambda c: bump(c, Version.CATALOG))
    assert reader.catalog(found.version) is not None


def test_no_file_and_garbage_are_named_errors_that_heal(
    path: Path, tmp_path: Path, reader: RegistryReader, writer: RegistryWriter
) -> None:
    writer.close()
    good = tmp_path / "good.db"
    assert reader.catalog() is not None
    reader.close()
    shutil.move(path, good)
    for _ in range(2):
        with pytest.raises(NoRegistry, match="iir migrate"):
            reader.catalog(1)
    assert not path.exists(), "a reader makes no file"
    path.write_bytes(b"garbage " * 1000)
    with pytest.raises(DamagedRegistry, match="SQLITE_DB_PATH") as caught:
        reader.catalog(1)
    assert str(tmp_path) not in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(NoRegistry):
        reader.leases()
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="SQLITE_DB_PATH"):
        reader.catalog(1)
    path.rmdir()
    good.replace(path)
    assert reader.catalog(1) is not None


def test_registry_without_its_counters(reader: RegistryReader, writer: RegistryWriter) -> None:
    writer.run_sync(lambda c: c.execute(text("DELETE FROM meta")))
    with pytest.raises(NoRegistry):
        reader.catalog()


def test_value_of_a_newer_program_is_a_named_error(
    reader: RegistryReader, writer: RegistryWriter
) -> None:
    writer.run_sync(add_acme)
    writer.run_sync(lambda c: c.execute(update(providers).values(zone="orbit")))
    with pytest.raises(StoreError, match="can't read"):
        reader.catalog()


def test_locked_registry_is_a_named_error_and_readers_go_on(
    path: Path, reader: RegistryReader, writer: RegistryWriter
) -> None:
    def impatiently(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA busy_timeout = 1")

    writer.run_sync(impatiently)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            writer.run_sync(add_acme)
        assert reader.catalog() is not None
        other.execute("ROLLBACK")
    writer.run_sync(add_acme)


def test_full_disk_is_a_named_error(path: Path, writer: RegistryWriter) -> None:
    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        connection.exec_driver_sql("CREATE TABLE filler (x)")

    with pytest.raises(StoreError, match="full"):
        writer.run_sync(fill)
    writer.run_sync(add_acme)


async def test_writer_is_one_thread_and_all_or_nothing(writer: RegistryWriter) -> None:
    def half(connection: Connection) -> None:
        add_acme(connection)
        raise LookupError("in the middle")

    with pytest.raises(LookupError):
        await writer.run(half)
    assert await writer.run(catalog.list_providers) == []
    threads = await asyncio.gather(*(writer.run(lambda _: threading.get_ident()) for _ in range(5)))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    with pytest.raises(Refusal):
        await writer.run(lambda c: catalog.remove_model(c, "none"))


async def test_cancelled_caller_does_not_break_the_transaction(writer: RegistryWriter) -> None:
    has_begun, may_go_on = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        has_begun.set()
        may_go_on.wait(5)
        add_acme(connection)

    task = asyncio.create_task(writer.run(slow))
    await asyncio.to_thread(has_begun.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_go_on.set()
    assert await writer.run(catalog.list_providers) == [ACME]


def test_writer_heals_after_the_file_was_away(
    path: Path, tmp_path: Path, writer: RegistryWriter
) -> None:
    writer.run_sync(add_acme)
    path.rename(tmp_path / "away.db")
    with pytest.raises(NoRegistry):
        writer.run_sync(catalog.list_providers)
    (tmp_path / "away.db").rename(path)
    assert writer.run_sync(catalog.list_providers) == [ACME]


def test_errors_do_not_quote_parameters(writer: RegistryWriter) -> None:
    def twice(connection: Connection) -> None:
        keys.create_key(connection, "x", {Scope.ADMIN})
        connection.execute(
            text("UPDATE api_keys SET name = NULL WHERE digest != :d"), {"d": "s3cret"}
        )

    with pytest.raises(StoreError) as caught:
        writer.run_sync(twice)
    assert "s3cret" not in f"{caught.value!r}{caught.value.__cause__!r}{caught.value.__cause__}"


def test_foreign_keys_hold(writer: RegistryWriter) -> None:
    with pytest.raises(StoreError, match="FOREIGN KEY"):
        writer.run_sync(
            lambda c: c.execute(text("INSERT INTO aliases (alias, model) VALUES ('a', 'none')"))
        )


def test_versions_are_numbers(writer: RegistryWriter) -> None:
    before = writer.run_sync(lambda c: current(c, Version.LEASES))
    for _ in range(12):
        writer.run_sync(lambda c: bump(c, Version.LEASES))
    assert writer.run_sync(lambda c: current(c, Version.LEASES)) == before + 12
