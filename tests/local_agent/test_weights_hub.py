"""Downloads from a hub that is cut off, goes on, and starts over."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local_agent.weights.errors import SourceUnreachable
from local_agent.weights.hub import Patience
from local_agent.weights.progress import Phase, Progress
from tests.local_agent.fake_hub import (
    CONTENT,
    IDENTITY,
    MODEL,
    SOURCE,
    TOKEN,
    FakeHub,
    Seen,
    fetch,
    leave_part,
)


async def test_a_file_arrives_whole_under_its_name(hub: FakeHub, tmp_path: Path) -> None:
    seen: list[Progress] = []
    path = await fetch(hub, tmp_path, seen=seen)
    assert path == tmp_path / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert sorted(item.name for item in path.parent.iterdir()) == ["tiny.gguf", "weights.json"]
    assert seen[-1].phase is Phase.DONE
    assert seen[-1].bytes_done == seen[-1].bytes_total == len(CONTENT)
    assert {report.source for report in seen} <= {"", SOURCE.ref}
    assert hub.script.seen[0].path == "/org/repo/resolve/main/sub/tiny.gguf"


async def test_pulled_weights_are_not_pulled_again(hub: FakeHub, tmp_path: Path) -> None:
    first = await fetch(hub, tmp_path)
    count = len(hub.script.seen)
    assert await fetch(hub, tmp_path) == first
    assert len(hub.script.seen) == count


async def test_the_token_stays_with_the_hub_and_out_of_the_log(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await fetch(hub, tmp_path, token=f" {TOKEN}\n")
    assert all(seen.headers["authorization"] == f"Bearer {TOKEN}" for seen in at(hub, "hub"))
    assert at(hub, "storage")
    assert all("authorization" not in seen.headers for seen in at(hub, "storage"))
    assert TOKEN not in caplog.text


def at(hub: FakeHub, role: str) -> list[Seen]:
    return [seen for seen in hub.script.seen if seen.role == role]


async def test_a_cut_download_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.cuts = [100_000, 150_000]
    path = await fetch(hub, tmp_path)
    assert path.read_bytes() == CONTENT
    starts = [seen.headers.get("range", "") for seen in hub.script.requests("storage", "GET")]
    assert starts[0] == ""
    assert [int(start[6:-1]) for start in starts[1:]] == [100_000, 250_000]
    last = hub.script.requests("storage", "GET")[-1]
    assert last.headers["if-range"] == '"storage-1"'


async def test_a_later_pull_goes_on_after_a_kill(hub: FakeHub, tmp_path: Path) -> None:
    leave_part(tmp_path, CONTENT[:200_000], IDENTITY)
    seen: list[Progress] = []
    path = await fetch(hub, tmp_path, seen=seen)
    assert path.read_bytes() == CONTENT
    (request,) = hub.script.requests("storage", "GET")
    assert request.headers["range"] == "bytes=200000-"


async def test_a_cancelled_pull_keeps_its_bytes(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.stalls = [300_000]
    task = asyncio.create_task(fetch(hub, tmp_path, patience=Patience(stall_s=30)))
    part = tmp_path / MODEL / "tiny.gguf.part"
    while not part.is_file() or part.stat().st_size < 300_000:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT
    assert hub.script.requests("storage", "GET")[-1].headers["range"] == "bytes=300000-"


def test_a_killed_process_leaves_what_it_has(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.stalls = [300_000]
    child = subprocess.Popen(
        [sys.executable, "-c", PULL_PROGRAM, str(tmp_path), hub.url], cwd=Path(__file__).parents[2]
    )
    part = tmp_path / MODEL / "tiny.gguf.part"
    while child.poll() is None and not (part.is_file() and part.stat().st_size >= 300_000):
        time.sleep(0.01)
    child.kill()
    child.wait()
    hub.script.is_over.set()
    assert asyncio.run(fetch(hub, tmp_path)).read_bytes() == CONTENT
    assert hub.script.requests("storage", "GET")[-1].headers["range"] == "bytes=300000-"


PULL_PROGRAM = f"""
import asyncio, sys
from pathlib import Path
from local_agent.weights.job import Puller
from local_agent.weights.source import HubSource
puller = Puller(Path(sys.argv[1]), env={{}}, hub_endpoint=sys.argv[2])
source = HubSource(repo="org/repo", file="sub/tiny.gguf")
asyncio.run(puller.pull("{MODEL}", [source], lambda progress: None))
"""


async def test_a_whole_part_is_only_checked(hub: FakeHub, tmp_path: Path) -> None:
    leave_part(tmp_path, CONTENT, IDENTITY)
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT
    assert not hub.script.requests("storage", "GET")


@pytest.mark.parametrize(
    ("content", "identity"),
    [
        (b"GGUFold" * 100, "another file"),
        (CONTENT + b"too long", IDENTITY),
    ],
)
async def test_a_part_of_something_else_is_dropped(
    hub: FakeHub, tmp_path: Path, content: bytes, identity: str
) -> None:
    leave_part(tmp_path, content, identity)
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT
    (request,) = hub.script.requests("storage", "GET")
    assert "range" not in request.headers


@pytest.mark.parametrize("notes", ["[1]", "{broken", '{"identity": 3}'])
async def test_a_part_with_unreadable_notes_is_dropped(
    hub: FakeHub, tmp_path: Path, notes: str
) -> None:
    part = leave_part(tmp_path, b"GGUFold", IDENTITY)
    part.with_name("tiny.gguf.part.json").write_text(notes)
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_a_server_without_ranges_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.has_ranges = False
    hub.script.cuts = [100_000]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_a_changed_file_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    leave_part(tmp_path, b"GGUFold" * 100, IDENTITY)
    hub.script.storage_etag = '"storage-2"'
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_a_weak_etag_is_not_used_for_if_range(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.storage_etag = 'W/"storage"'
    hub.script.cuts = [100_000]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT
    assert "if-range" not in hub.script.requests("storage", "GET")[-1].headers


async def test_another_range_than_asked_for_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.cuts = [100_000]
    hub.script.wrong_start = [7]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_an_unknown_range_starts_over(hub: FakeHub, tmp_path: Path) -> None:
    leave_part(tmp_path, b"GGUFold" * 100, IDENTITY)
    hub.script.get_status = [416]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_a_silent_connection_counts_as_broken(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.stalls = [1000]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT


async def test_tries_without_progress_end(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.cuts = [1000, 0, 0, 0]
    with pytest.raises(SourceUnreachable, match=r"connection broken, 3 tries.*goes on from it"):
        await fetch(hub, tmp_path)
    assert (tmp_path / MODEL / "tiny.gguf.part").stat().st_size == 1000


async def test_busy_answers_are_tried_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.script.head_status = [503, 429]
    hub.script.get_status = [502, 500]
    assert (await fetch(hub, tmp_path)).read_bytes() == CONTENT
