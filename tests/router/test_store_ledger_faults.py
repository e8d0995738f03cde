"""The usage ledger under real faults: locked, full, read-only, and killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from router.domain import EndpointId, ModelName, Outcome, RequestFacts
from router.store.ledger import UsageLedger
from router.store.migrate import migrate
from router.store.writer import RegistryWriter

ROOT = Path(__file__).resolve().parents[2]
OUTCOME = Outcome(endpoint=EndpointId("acme"), attempt=1, status=200, ttft_s=0.25, total_s=1.5)

# Writes rows for ever, and says after each flush how many are in the file.
WRITES = """
import asyncio, sys
from router.domain import EndpointId, ModelName, Outcome, RequestFacts
from router.store.ledger import UsageLedger
from router.store.writer import RegistryWriter

outcome = Outcome(endpoint=EndpointId("acme"), attempt=1, status=200, ttft_s=None, total_s=1.0)

async def main(url, run):
    ledger, sent, written = UsageLedger(RegistryWriter(url), batch=7), 0, 0
    while True:
        for _ in range(20):
            facts = RequestFacts(
                request_id=f"{run}-{sent}", model=ModelName("m"), stream=False, path="/x"
            )
            ledger.record(facts, outcome)
            sent += 1
        written += await ledger.flush()
        print(written, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def record(ledger: UsageLedger, first: int, count: int) -> None:
    for n in range(first, first + count):
        facts = RequestFacts(
            request_id=f"r-{n}", model=ModelName("smol"), stream=False, path="/chat/completions"
        )
        ledger.record(facts, OUTCOME)


def written(path: Path) -> list[str]:
    """Return the ids of all rows, after checking that the file is intact."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return [row[0] for row in connection.execute("SELECT request_id FROM usage ORDER BY id")]


def ids(count: int) -> list[str]:
    return [f"r-{n}" for n in range(count)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, which is taken away in any case."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root on Linux only")
    found = tmp_path / "disk"
    found.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(found)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield found
    finally:
        # Lazily: a test that failed may have left a file open.
        subprocess.run(["umount", "--lazy", str(found)], check=True)


async def test_rows_wait_while_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "models.db"
    migrate(url_of(path))
    writer = RegistryWriter(url_of(path))
    ledger = UsageLedger(writer, batch=3, most_waiting=8)
    # Else this waits for seconds, as it should.
    writer.run_sync(lambda c: c.exec_driver_sql("PRAGMA busy_timeout = 20").close())
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE meta SET value = '5' WHERE key = 'lease_version'")
        record(ledger, 0, 10)
        assert await ledger.flush() == 0
        assert (ledger.waiting, ledger.dropped) == (8, 2)
        other.execute("COMMIT")
    assert await ledger.flush() == 8
    assert await ledger.flush() == 0
    writer.close()
    assert written(path) == ids(8)


async def test_rows_wait_while_the_disk_is_full(small_disk: Path) -> None:
    path, ballast = small_disk / "models.db", small_disk / "ballast"
    migrate(url_of(path))
    ballast.write_bytes(bytes(400_000))
    writer = RegistryWriter(url_of(path))
    ledger = UsageLedger(writer, batch=50, most_waiting=500)
    sent = done = 0
    while not ledger.waiting:
        assert sent < 50_000, "the disk is not full yet"
        record(ledger, sent, 100)
        sent += 100
        done += await ledger.flush()
    assert done + ledger.waiting == sent
    assert await ledger.flush() == 0, "the disk is still full"

    # As many wait as may; what comes then is dropped and counted.
    room = 500 - ledger.waiting
    record(ledger, sent, room + 30)
    assert (ledger.waiting, ledger.dropped) == (500, 30)
    sent += room
    ballast.unlink()
    assert done + await ledger.flush() == sent
    assert (ledger.waiting, ledger.dropped) == (0, 30)
    writer.close()
    assert written(path) == ids(sent)


async def test_rows_wait_while_the_disk_is_read_only(small_disk: Path) -> None:
    path = small_disk / "models.db"
    migrate(url_of(path))

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], check=True)

    remount("ro")
    writer = RegistryWriter(url_of(path))
    ledger = UsageLedger(writer, most_waiting=5)
    record(ledger, 0, 6)
    assert await ledger.flush() == 0
    assert (ledger.waiting, ledger.dropped) == (5, 1)
    remount("rw")
    assert await ledger.flush() == 5
    writer.close()
    assert written(path) == ids(5)


async def test_rows_wait_while_the_file_is_read_only(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes to read-only files; the test of a read-only disk is for root")
    path = tmp_path / "models.db"
    migrate(url_of(path))
    path.chmod(0o400)
    writer = RegistryWriter(url_of(path))
    ledger = UsageLedger(writer)
    record(ledger, 0, 5)
    assert await ledger.flush() == 0
    path.chmod(0o600)
    assert await ledger.flush() == 5
    writer.close()
    assert written(path) == ids(5)


@pytest.mark.slow
def test_kill_loses_no_row_that_was_reported_as_written(tmp_path: Path) -> None:
    path = tmp_path / "models.db"
    migrate(url_of(path))
    # Each time over what the last one left, and after another number of flushes.
    for run, flushes in enumerate((1, 4, 23)):
        reported = _run_until_killed(path, f"run{run}", flushes)
        assert reported >= 20 * flushes
        found = [row for row in written(path) if row.startswith(f"run{run}-")]
        # What was committed and not reported yet may be there too; nothing is there twice.
        assert found == [f"run{run}-{n}" for n in range(len(found))]
        assert len(found) >= reported


def _run_until_killed(path: Path, run: str, flushes: int) -> int:
    """Return how many rows the process said were written before it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES, url_of(path), run],
        cwd=ROOT,
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline() for _ in range(flushes)]
    finally:
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL, "".join(lines) + rest
    # The last line may have been cut off.
    whole = ("".join(lines) + rest).rpartition("\n")[0].splitlines()
    return int(whole[-1])
