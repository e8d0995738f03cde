"""Pulls through a container engine that is a fake: what is shown, what fails, what is left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from local_agent.containers.causes import DISK_FULL, image_refusal, program_refusal
from local_agent.containers.launcher import AGENT, PULL
from local_agent.containers.layers import Layers
from local_agent.containers.pulling import ContainerPuller
from local_agent.domain import ModelId, PulledImage
from local_agent.ports import ContainerError, ContainerSpec, ContainerView, Launch
from local_agent.weights.errors import PullError
from local_agent.weights.progress import Phase, Progress
from local_agent.weights.store import WeightStore
from tests.local_agent.harness import until

M = ModelId("org/m")
SPEC = ContainerSpec(image="vllm/x:v1", port=8000, repo="org/tiny", volumes={"cache": "/c"})
DONE = {"result": {"size": 7, "is_checked": True}}


class FakeEngine:
    """A container engine in memory, whose program says `lines` and ends."""

    def __init__(self) -> None:
        self.images = {SPEC.image}
        self.messages: list[dict[str, Any]] = []
        self.lines: list[object] = [DONE]
        self.env: dict[str, str] = {}
        self.running: dict[str, ContainerView] = {}
        self.stopped: list[str] = []
        self.hang = Event()
        self.hang.set()
        self.closed = 0

    def find(self, labels: Mapping[str, str]) -> list[ContainerView]:
        return [v for v in self.running.values() if labels.items() <= dict(v.labels).items()]

    def look(self, container: str) -> ContainerView | None:
        return self.running.get(container)

    def start(self, name: str, launch: Launch, **fields: object) -> str:
        raise AssertionError("pulls start no workers")

    def run_program(
        self,
        name: str,
        spec: ContainerSpec,
        program: str,
        *,
        env: Mapping[str, str],
        labels: Mapping[str, str],
    ) -> str:
        assert "def main(env" in program
        self.env = dict(env)
        made = f"c{len(self.stopped)}"
        self.running[made] = ContainerView(id=made, labels=labels, is_running=True)
        return made

    def has_image(self, image: str) -> bool:
        return image in self.images

    def pull_image(self, image: str, report: Callable[[Mapping[str, Any]], object]) -> None:
        for message in self.messages:
            report(message)
        self.hang.wait(10)
        self.images.add(image)

    def stop(self, container: str, grace_s: float) -> None:
        self.stopped.append(container)
        self.running.pop(container, None)
        self.hang.set()

    def follow(self, container: str, lines: int, write: Callable[[bytes], object]) -> None:
        for line in self.lines:
            text = line if isinstance(line, str) else json.dumps(line)
            half = len(text) // 2
            write(text[:half].encode())  # lines come in pieces
            write(text[half:].encode() + b"\n")
        self.hang.wait(10)

    def close(self) -> None:
        self.closed += 1


class Stage:
    def __init__(self, folder: Path) -> None:
        self.engine = FakeEngine()
        self.seen: list[Progress] = []
        self.folder = folder

    def puller(self, stall_s: float = 300.0) -> ContainerPuller:
        return ContainerPuller(
            agent_id="me",
            connect=lambda: self.engine,
            run_dir=self.folder,
            secrets={"HF_TOKEN": "hf_s3cret"},
            stall_s=stall_s,
            report_every_s=0.001,
        )

    async def pull(self, stall_s: float = 300.0) -> Any:
        return await self.puller(stall_s).pull(M, SPEC, self.seen.append)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def test_the_program_s_numbers_are_shown(stage: Stage) -> None:
    stage.engine.lines = [
        "a word of the interpreter",
        {"phase": "checking"},
        {"phase": "downloading", "done": 1, "total": 7},
        {"phase": "waiting"},
        {"phase": "downloading", "done": 7, "total": 7},
        {"phase": "verifying", "done": 0, "total": 7},
        DONE,
    ]
    pulled = PulledImage(image="vllm/x:v1", repo="org/tiny", size_bytes=7)
    assert await stage.pull() == (pulled, True)
    last = stage.seen[-1]
    assert (last.phase, last.bytes_done, last.source) == (Phase.DONE, 7, "hf:org/tiny")
    assert stage.engine.env == {
        "IIR_TASK": "pull",
        "IIR_REPO": "org/tiny",
        "HF_TOKEN": "hf_s3cret",
    }
    assert stage.engine.stopped == ["c0"]
    assert stage.engine.closed == 1


async def test_what_an_earlier_pull_left_is_removed_first(stage: Stage) -> None:
    labels = {AGENT: "me", PULL: M}
    other = {AGENT: "me", PULL: "another"}
    stage.engine.running = {
        "old": ContainerView(id="old", labels=labels, is_running=True),
        "other": ContainerView(id="other", labels=other, is_running=True),
    }
    await stage.pull()
    assert stage.engine.stopped == ["old", "c1"]
    assert list(stage.engine.running) == ["other"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            {"kind": "denied"},
            "accept the licence at https://huggingface.co/org/tiny and set HF_TOKEN",
        ),
        ({"kind": "not_found"}, "no such repository: org/tiny"),
        ({"kind": "unreachable", "cause": "no connection", "is_resumable": True}, "is kept"),
        ({"kind": "space", "needed": 5e9, "free": 1e9}, "5.00 GB needed, 1.00 GB free"),
        ({"kind": "full"}, DISK_FULL),
        ({"kind": "disk", "reason": "Read-only file system"}, "Read-only file system"),
        ({"kind": "checksum", "file": "m.bin"}, "the checksum of m.bin is wrong"),
        ({"kind": "status", "status": 418}, "the hub answered with status 418"),
        ({"kind": "other"}, "makes no sense"),
    ],
)
async def test_what_the_program_fails_of_is_put_into_words(
    stage: Stage, error: dict[str, object], words: str
) -> None:
    stage.engine.lines = [{"error": error}]
    with pytest.raises(PullError, match=words):
        await stage.pull()
    assert stage.engine.running == {}


async def test_a_program_that_breaks_is_told_by_its_last_line(stage: Stage) -> None:
    stage.engine.lines = ["Traceback", "ModuleNotFoundError: no json in /opt/x/lib"]
    with pytest.raises(PullError, match="has failed: ModuleNotFoundError: no json in lib"):
        await stage.pull()


async def test_silence_ends_a_pull(stage: Stage) -> None:
    stage.engine.lines = [{"phase": "downloading", "done": 1, "total": 7}]
    stage.engine.hang.clear()
    with pytest.raises(PullError, match="no byte has come for"):
        await stage.pull(stall_s=0.05)
    assert stage.engine.running == {}


async def test_a_stopped_pull_leaves_no_container(stage: Stage) -> None:
    stage.engine.lines = [{"phase": "downloading", "done": 1, "total": 7}]
    stage.engine.hang.clear()
    task = asyncio.create_task(stage.pull())
    await until(lambda: any(progress.bytes_done for progress in stage.seen))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stage.engine.running == {}


async def test_a_missing_image_is_pulled_first(stage: Stage) -> None:
    stage.engine.images.clear()
    stage.engine.messages = [
        {"status": "Pulling from x", "id": "v1"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 3, "total": 9}},
    ]
    stage.engine.hang.clear()
    task = asyncio.create_task(stage.pull())
    await until(lambda: any(progress.bytes_done == 3 for progress in stage.seen))
    assert (stage.seen[-1].source, stage.seen[-1].bytes_total) == ("vllm/x:v1", 9)
    stage.engine.hang.set()
    assert (await task)[1] is True


async def test_removing_needs_the_image(stage: Stage) -> None:
    assert await stage.puller().remove(M, SPEC) == 7
    assert stage.engine.env["IIR_TASK"] == "remove"
    with pytest.raises(PullError, match="docker volume rm cache"):
        await stage.puller().remove(M, replace(SPEC, image="gone:v1"))


async def test_an_engine_that_is_away(stage: Stage) -> None:
    def away() -> FakeEngine:
        raise ContainerError("no container engine answers", is_unreachable=True)

    puller = ContainerPuller(agent_id="me", connect=away, run_dir=stage.folder, secrets={})
    with pytest.raises(PullError, match="no container engine answers"):
        await puller.pull(M, SPEC, stage.seen.append)


def test_layers_add_up() -> None:
    layers = Layers()

    def say(status: str, layer: str, current: int | None = None, total: int | None = None) -> None:
        detail = {"current": current, "total": total} if current is not None else {}
        layers.take({"status": status, "id": layer, "progressDetail": detail})

    layers.take({"status": "Digest: sha256:x"})
    say("Pulling from library/x", "v1")
    for layer in ("a", "b", "c"):
        say("Pulling fs layer", layer)
    say("Already exists", "c")
    say("Downloading", "a", 5, 10)
    assert (layers.downloaded, layers.total) == (5, None)  # nobody knows b
    say("Downloading", "b", 1, 30)
    assert (layers.downloaded, layers.total, layers.is_downloaded) == (6, 40, False)
    say("Download complete", "a")
    say("Verifying Checksum", "b")
    assert layers.is_downloaded
    say("Extracting", "a", 4, 10)
    assert layers.unpacked == 4
    say("Pull complete", "a")
    say("Pull complete", "b")
    assert layers.unpacked == 40


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pull access denied for x, repository does not exist", "docker login"),
        ("manifest for x:v9 not found: manifest unknown: manifest unknown", "option image"),
        ("toomanyrequests: You have reached your pull rate limit", "fewer pulls"),
        ('Get "https://r/v2/": dial tcp: lookup r: no such host', "can't be reached"),
        ("write /var/lib/docker/tmp/x: no space left on device", DISK_FULL),
        ("something at https://internal/ broke", "can't be pulled: something at … broke"),
    ],
)
def test_why_an_image_can_not_be_pulled(text: str, words: str) -> None:
    assert words in image_refusal(text, "x:v9")


def test_what_was_pulled_is_noted_per_model_and_forgotten_per_repository(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    pulled = PulledImage(image="i:1", repo="org/tiny", size_bytes=7)
    assert store.pulled(M) is None
    for model in (M, ModelId("b")):
        store.record_pulled(model, pulled, "2026-01-01T00:00:00+00:00")
    store.record_pulled(
        ModelId("c"), replace(pulled, repo="org/other"), "2026-01-01T00:00:00+00:00"
    )
    assert store.pulled(M) == pulled
    store.forget_repo("org/tiny")
    assert store.pulled(M) is None
    assert store.pulled(ModelId("b")) is None
    assert store.pulled(ModelId("c")) is not None
    (store.folder(ModelId("c")) / "container.json").write_text("{")
    assert store.pulled(ModelId("c")) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            'exec: "python3": executable file not found in $PATH',
            "the image vllm/x:v1 has no python3",
        ),
        ("write /var/lib/docker/x: no space left on device", DISK_FULL),
        ("cannot start: cgroup pids is not there", "the container engine refused (500): cannot"),
    ],
)
def test_why_a_pull_does_not_start_is_named(text: str, reason: str) -> None:
    assert program_refusal(500, text, "vllm/x:v1").startswith(reason)
