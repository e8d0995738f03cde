"""Repositories pulled for processes of this host: by a real process, from a small hub."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from local_agent.pulls.repository import RepositoryPuller
from local_agent.settings import load_settings
from local_agent.this_host import this_host
from local_agent.weights.errors import (
    AccessDenied,
    AlreadyPulling,
    ChecksumMismatch,
    NotEnoughSpace,
    PullError,
    SourceFailed,
    SourceNotFound,
    SourceUnreachable,
    WriteFailed,
)
from local_agent.weights.hub_cache import HubCache, users_cache
from local_agent.weights.progress import Phase, Progress
from tests.local_agent.harness import PATIENCE_S, until
from tests.local_agent.repo_hub import COMMIT, LOADED, SIZE, TOKEN, WEIGHTS, FakeHub

REPO = "org/tiny"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


class Stage:
    def __init__(self, folder: Path, hub: FakeHub) -> None:
        self.cache = HubCache(folder / "models" / ".hub")
        self.users = HubCache(folder / "user" / "hub")
        self.secrets = {"HF_ENDPOINT": hub.url}
        self.env = {"PATH": os.defpath, "PYTHONPATH": "/nowhere", "HF_TOKEN": "hf_of_somebody"}
        self.seen: list[Progress] = []

    def puller(self, stall_s: float = 300.0, cache: HubCache | None = None) -> RepositoryPuller:
        return RepositoryPuller(
            cache or self.cache,
            users=self.users,
            env=self.env,
            secrets=self.secrets,
            stall_s=stall_s,
            report_every_s=0.001,
        )

    async def pull(self, repo: str = REPO, stall_s: float = 300.0) -> tuple[int, bool]:
        return await self.puller(stall_s).pull(repo, self.seen.append)

    def files(self) -> dict[str, bytes]:
        folder = self.cache.find(REPO)
        return {} if folder is None else {path.name: path.read_bytes() for path in folder.iterdir()}

    async def started(self, hub: FakeHub) -> tuple[asyncio.Task[tuple[int, bool]], psutil.Process]:
        """Start a pull that the hub holds in the middle; return it and its process."""
        hub.hold = 1_500_000
        task = asyncio.create_task(self.pull())
        await until(lambda: any(progress.bytes_done > 1_500_000 for progress in self.seen))
        return task, program()


async def stop(task: asyncio.Task[tuple[int, bool]]) -> None:
    """Stop a pull as jobs and commands do."""
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
    assert done, "it goes on"
    assert task.cancelled()


def program() -> psutil.Process:
    (found,) = programs()
    return found


def programs() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "_hub_program.py" in " ".join(arguments(child))]


def arguments(process: psutil.Process) -> list[str]:
    """Return its command line; one that has ended, or is not waited for yet, has none."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def stage(tmp_path: Path, hub: FakeHub) -> Stage:
    return Stage(tmp_path, hub)


async def test_what_an_engine_loads_comes_with_progress_and_is_found(stage: Stage) -> None:
    assert stage.cache.find(REPO) is None
    assert await stage.pull() == (SIZE, True)
    assert stage.files() == LOADED
    folder = stage.cache.find(REPO)
    assert folder is not None
    assert folder.name == COMMIT
    last = stage.seen[-1]
    assert (last.phase, last.bytes_done, last.source) == (Phase.DONE, SIZE, "hf:org/tiny")
    assert {Phase.DOWNLOADING, Phase.VERIFYING} & {progress.phase for progress in stage.seen}
    assert programs() == []


async def test_a_revision_without_all_of_its_files_is_not_there(stage: Stage) -> None:
    await stage.pull()
    next((stage.cache.folder(REPO) / "blobs").iterdir()).unlink()
    assert stage.cache.find(REPO) is None
    await stage.pull()
    assert stage.files() == LOADED


async def test_a_cancelled_pull_ends_its_process_and_the_next_goes_on(
    stage: Stage, hub: FakeHub
) -> None:
    task, child = await stage.started(hub)
    assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
    assert "hf_of_somebody" not in str(child.environ())
    assert child.cmdline()[1:3] == ["-I", "-S"]
    await stop(task)
    assert not child.is_running()
    assert stage.cache.find(REPO) is None
    hub.release()
    hub.asked.clear()
    assert await stage.pull() == (SIZE, True)
    (asked,) = (asked for path, asked in hub.asked if path.endswith(".safetensors"))
    assert asked is not None
    assert stage.files() == LOADED


async def test_only_one_at_a_time_pulls_a_repository(stage: Stage, hub: FakeHub) -> None:
    task, child = await stage.started(hub)
    with pytest.raises(AlreadyPulling, match="org/tiny are being pulled or removed by another"):
        await stage.pull()
    with pytest.raises(AlreadyPulling):
        await stage.puller().remove(REPO)
    child.send_signal(signal.SIGKILL)
    with pytest.raises(SourceFailed, match=r"has failed \(exit -9\)"):
        await task
    hub.release()
    assert await stage.pull() == (SIZE, True)


async def test_a_gated_repository_needs_the_token_which_is_told_nobody(
    stage: Stage, hub: FakeHub
) -> None:
    hub.is_gated = True
    with pytest.raises(AccessDenied, match="/org/tiny and set HF_TOKEN"):
        await stage.pull()
    stage.secrets["HF_TOKEN"] = TOKEN
    await stage.pull()
    assert f"Bearer {TOKEN}" in hub.tokens
    texts = [path.read_text("latin-1") for path in stage.cache.root.rglob("*") if path.is_file()]
    assert not any(TOKEN in text for text in texts)


async def test_failures_are_named(stage: Stage, hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match="no such repository: org/none; check the option repo"):
        await stage.pull("org/none")
    hub.is_lying = True
    with pytest.raises(ChecksumMismatch, match="is wrong; the file was removed: pull again"):
        await stage.pull()
    hub.is_lying = False
    stage.secrets["HF_ENDPOINT"] = "http://127.0.0.1:9"
    with pytest.raises(SourceUnreachable, match="check the network, or set HF_ENDPOINT"):
        await stage.pull()
    stage.secrets["HF_ENDPOINT"] = hub.url
    blocked = HubCache(tmp_path / "blocked")
    blocked.root.mkdir()
    blocked.folder(REPO).touch()
    with pytest.raises(WriteFailed, match="can't write the weights: Not a directory"):
        await stage.puller(cache=blocked).pull(REPO, stage.seen.append)


async def test_more_than_the_disk_holds_is_refused_before_it_is_downloaded(
    stage: Stage, hub: FakeHub
) -> None:
    info = hub.info()
    for each in info["siblings"]:
        if "lfs" in each:
            each["size"] = each["lfs"]["size"] = 10**18
    hub.info = lambda: info  # type: ignore[method-assign] # a hub with a larger model
    with pytest.raises(
        NotEnoughSpace, match=r"needed, .* free; free some, or set IIR_HOME to a la"
    ):
        await stage.pull()
    assert not any(path.endswith(".safetensors") for path, _ in hub.asked)


async def test_silence_ends_a_pull(stage: Stage, hub: FakeHub) -> None:
    hub.hold = 1_500_000
    with pytest.raises(SourceUnreachable, match="no byte has come for"):
        await stage.pull(stall_s=1)
    assert programs() == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("/opt/python: no such thing", r"has failed \(exit 3\): python: no such thing"),
        ('{"error": {"kind": "full"}}', "the disk is full: free some space and pull again"),
    ],
)
async def test_a_program_that_can_not_go_on(
    tmp_path: Path, stage: Stage, said: str, words: str
) -> None:
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\necho '{said}'\nexit 3\n")
    broken.chmod(0o755)
    puller = RepositoryPuller(
        stage.cache, users=stage.users, env={}, secrets={}, python=str(broken)
    )
    with pytest.raises(PullError, match=words):
        await puller.pull(REPO, stage.seen.append)


async def test_the_user_s_own_cache_is_used_and_left_alone(stage: Stage, hub: FakeHub) -> None:
    own = RepositoryPuller(stage.users, users=stage.cache, env=stage.env, secrets=stage.secrets)
    await own.pull(REPO, stage.seen.append)
    before = {path: path.lstat().st_mtime for path in stage.users.root.rglob("*")}
    hub.asked.clear()
    assert await stage.pull() == (SIZE, True)
    assert [path for path, _ in hub.asked] == ["/api/models/org/tiny/revision/main?blobs=true"]
    assert stage.files() == LOADED
    ours, theirs = (cache.find(REPO) for cache in (stage.cache, stage.users))
    assert ours is not None
    assert theirs is not None
    assert (ours / "model.safetensors").samefile(theirs / "model.safetensors")
    await stage.puller().remove(REPO)
    assert (theirs / "model.safetensors").read_bytes() == WEIGHTS
    assert {path: path.lstat().st_mtime for path in stage.users.root.rglob("*")} == before


async def test_wrong_bytes_of_the_user_s_cache_are_taken_once(stage: Stage, hub: FakeHub) -> None:
    own = RepositoryPuller(stage.users, users=stage.cache, env=stage.env, secrets=stage.secrets)
    await own.pull(REPO, stage.seen.append)
    theirs = stage.users.find(REPO)
    assert theirs is not None
    wrong = WEIGHTS[:-1] + b"!"
    (theirs / "model.safetensors").write_bytes(wrong)
    with pytest.raises(ChecksumMismatch, match="pull again"):
        await stage.pull()
    assert await stage.pull() == (SIZE, True)
    assert stage.files() == LOADED
    assert (theirs / "model.safetensors").read_bytes() == wrong


async def test_removed_is_removed_broken_pulls_too(stage: Stage, hub: FakeHub) -> None:
    assert await stage.puller().remove(REPO) == 0
    task, _ = await stage.started(hub)
    await stop(task)
    assert await stage.puller().remove(REPO) > 1_000_000
    assert not stage.cache.folder(REPO).exists()
    hub.release()
    await stage.pull()
    assert await stage.puller().remove(REPO) == SIZE
    assert stage.cache.find(REPO) is None


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"HF_HUB_CACHE": "/a/hub", "HF_HOME": "/b"}, Path("/a/hub")),
        ({"HF_HOME": "~/b"}, Path.home() / "b" / "hub"),
        ({"XDG_CACHE_HOME": "/c"}, Path("/c/huggingface/hub")),
        ({}, Path.home() / ".cache" / "huggingface" / "hub"),
    ],
)
def test_where_the_user_s_cache_is(env: dict[str, str], folder: Path) -> None:
    found = users_cache(env)
    assert found is not None
    assert found.root == folder


async def test_without_a_home_folder_everything_is_downloaded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expanduser(path: Path) -> Path:
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", expanduser)
    monkeypatch.setattr(Path, "home", lambda: expanduser(Path("~")))
    assert users_cache({}) is None
    assert users_cache({"HF_HOME": "~nobody"}) is None
    this_host(load_settings())
    puller = RepositoryPuller(stage.cache, users=None, env=stage.env, secrets=stage.secrets)
    assert await puller.pull(REPO, stage.seen.append) == (SIZE, True)


async def test_a_loop_of_links_in_the_user_s_cache_is_passed_over(stage: Stage) -> None:
    own = RepositoryPuller(stage.users, users=stage.cache, env=stage.env, secrets=stage.secrets)
    await own.pull(REPO, stage.seen.append)
    theirs = stage.users.find(REPO)
    assert theirs is not None
    (theirs / "loop.json").symlink_to("loop.json")
    assert await stage.pull() == (SIZE, True)


@pytest.mark.parametrize("named", [{}, {"SSL_CERT_DIR": "/own"}])
async def test_a_python_that_knows_no_authorities_gets_them(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch, named: dict[str, str]
) -> None:
    nowhere = SimpleNamespace(cafile=None, capath=None)
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "file=$SSL_CERT_FILE dir=$SSL_CERT_DIR."\nexit 3\n')
    python.chmod(0o755)
    puller = RepositoryPuller(stage.cache, users=None, env=named, secrets={}, python=str(python))
    said = "file= dir=own." if named else "file=cacert.pem dir=."
    with pytest.raises(SourceFailed, match=f"{said}$"):
        await puller.pull(REPO, stage.seen.append)
