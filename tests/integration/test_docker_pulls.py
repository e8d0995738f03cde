"""Images and weights pulled by the agent, through a real container engine.

A small registry on 127.0.0.1 serves the image, a hub in a container of its own the weights. Without an
engine on this machine the tests are skipped, except where CI says that it has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import Any

import anyio
import docker
import pytest

from local_agent.containers import sdk
from local_agent.containers.address import candidates
from local_agent.containers.pulling import ContainerPuller
from local_agent.domain import ModelId, PulledImage
from local_agent.ports import ContainerSpec
from local_agent.weights.errors import (
    AccessDenied,
    ChecksumMismatch,
    NotEnoughSpace,
    SourceFailed,
    SourceUnreachable,
)
from local_agent.weights.progress import Phase, Progress
from shared.kit.clock import monotonic
from tests.integration import container_engine
from tests.integration.registry import Registry
from tests.local_agent import repo_hub
from tests.local_agent.repo_hub import COMMIT, SIZE, WEIGHTS

pytestmark = pytest.mark.integration

BASE = "python:3.12-slim"
IMAGE = "iir-test/hub-client:v1"
LABEL = "iir-test-pulls"
PLACE = "/root/.cache/huggingface"
MODEL = ModelId("org/tiny")
PATIENCE_S = 60.0

# the hub's own library has to find what was pulled, without asking the hub
DOCKERFILE = f"""
FROM {BASE}
RUN pip install --no-cache-dir huggingface_hub
LABEL {LABEL}=1
"""
LOOK = (
    "from huggingface_hub import snapshot_download as s; import os;"
    "p = s('org/tiny', local_files_only=True, allow_patterns=['*.safetensors', '*.json']);"
    "print(sorted((f, os.path.getsize(p + '/' + f)) for f in os.listdir(p)))"
)


class Engine:
    """The container engine, with the image built on it, and what a test makes there."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.volumes: list[str] = []
        self.containers: list[Any] = []
        self.images: list[str] = []

    def volume(self, **options: str) -> str:
        name = f"{LABEL}-{uuid.uuid4().hex[:8]}"
        self.client.volumes.create(name, driver_opts=options or None, labels={LABEL: "1"})
        self.volumes.append(name)
        return name

    def hub(self, behaviour: dict[str, Any] | None = None) -> str:
        """Start a hub in a container; return its address in the engine's network."""
        text = Path(repo_hub.__file__).read_text()
        command = ["python3", "-c", text, "80", json.dumps({"is_loud": True, **(behaviour or {})})]
        hub = self.client.containers.run(BASE, command, detach=True, labels={LABEL: "1"})
        self.containers.append(hub)
        deadline = monotonic() + PATIENCE_S
        while hub.exec_run(["python3", "-c", _LISTENS]).exit_code != 0:
            assert monotonic() < deadline, hub.logs()
            sleep(0.1)
        hub.reload()
        return f"http://{hub.attrs['NetworkSettings']['IPAddress']}"

    def run(self, volume: str, *command: str) -> str:
        volumes = {volume: {"bind": PLACE, "mode": "rw"}}
        container = self.client.containers.run(IMAGE, list(command), detach=True, volumes=volumes)
        try:
            # its output is read once it has ended, and before it is removed: without `detach` the SDK
            # reads it afterwards, and may find nothing
            assert container.wait()["StatusCode"] == 0, container.logs().decode()
            return str(container.logs(stderr=False).decode())
        finally:
            container.remove(force=True)

    def clean(self) -> None:
        for container in self.containers:
            container.remove(force=True)
        for volume in self.volumes:
            self.client.volumes.get(volume).remove(force=True)
        for image in self.images:
            with contextlib.suppress(docker.errors.ImageNotFound):
                self.client.images.remove(image, force=True)


_LISTENS = "import socket; socket.create_connection(('127.0.0.1', 80))"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    client = container_engine.connected()
    build(client, IMAGE, {"Dockerfile": DOCKERFILE.encode()})
    yield client
    client.close()


def build(client: Any, tag: str, files: dict[str, bytes]) -> Any:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    context.seek(0)
    return client.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)[0]


@pytest.fixture
def engine(client: Any) -> Iterator[Engine]:
    engine = Engine(client)
    try:
        yield engine
    finally:
        engine.clean()


def serve(engine: Engine, tag: str) -> Iterator[Registry]:
    """Serve an image of this host by a registry, and take it away from the host until the end."""
    registry = Registry(engine.client.images.get(tag), f"iir-test/{uuid.uuid4().hex[:8]}", "v1")
    engine.client.images.remove(tag, force=True)
    engine.images.append(registry.image)
    try:
        yield registry
    finally:
        registry.close()


@pytest.fixture
def registry(engine: Engine) -> Iterator[Registry]:
    """Return a registry with an image that holds nothing but some megabytes."""
    tag = f"iir-test/ballast:{uuid.uuid4().hex[:8]}"
    dockerfile = f"FROM scratch\nCOPY ballast /\nCMD none\nLABEL {LABEL}=1\n".encode()
    build(engine.client, tag, {"Dockerfile": dockerfile, "ballast": os.urandom(5_000_000)})
    yield from serve(engine, tag)


class Pull:
    """Pulls as the agent does, and remembers what was shown."""

    def __init__(self, folder: Path, hub_url: str, volume: str, image: str = IMAGE) -> None:
        self.agent_id = str(uuid.uuid4())
        self.seen: list[Progress] = []
        self.spec = ContainerSpec(image=image, port=8000, repo="org/tiny", volumes={volume: PLACE})
        self._folder = folder
        self.secrets = {"HF_ENDPOINT": hub_url}

    def puller(self, stall_s: float = 300.0) -> ContainerPuller:
        env = dict(os.environ)  # noqa: TID251 - where the engine is
        return ContainerPuller(
            agent_id=self.agent_id,
            connect=lambda: sdk.connect(candidates(env, Path.home()), timeout_s=15),
            run_dir=self._folder,
            secrets=self.secrets,
            stall_s=stall_s,
        )

    async def __call__(self, stall_s: float = 300.0) -> tuple[PulledImage, bool]:
        self.seen.clear()
        return await self.puller(stall_s).pull(MODEL, self.spec, self.seen.append)

    def phases(self) -> list[str]:
        return list(dict.fromkeys(progress.phase.value for progress in self.seen))

    def left(self, engine: Engine) -> list[Any]:
        return container_engine.of_agent(engine.client, self.agent_id)


async def test_weights_come_into_the_volume_and_the_hub_s_library_finds_them(
    engine: Engine, tmp_path: Path
) -> None:
    volume, hub_url = engine.volume(), engine.hub()
    pull = Pull(tmp_path, hub_url, volume)
    pulled = PulledImage(image=IMAGE, repo="org/tiny", size_bytes=SIZE)
    assert await pull() == (pulled, True)
    assert pull.phases()[-1] == "done"
    assert pull.seen[-1].bytes_total == SIZE
    assert pull.left(engine) == []
    found = engine.run(volume, "python3", "-c", LOOK)
    assert f"('model.safetensors', {len(WEIGHTS)})" in found
    assert "config.json" in found

    began = monotonic()
    assert await pull() == (pulled, True)
    print(f"a pull of what is there: {monotonic() - began:.1f} s")  # noqa: T201
    pull.secrets["HF_ENDPOINT"] = "http://127.0.0.1:9"
    assert await pull() == (pulled, False)  # whole, but there is nobody to compare with

    assert await pull.puller().remove(MODEL, pull.spec) >= SIZE
    assert await pull.puller().remove(MODEL, pull.spec) == 0
    assert "models--" not in engine.run(volume, "ls", f"{PLACE}/hub")


async def until(is_true: Callable[[], object]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not is_true():
            await anyio.sleep(0.05)


async def stop(task: asyncio.Task[Any]) -> None:
    """Stop a pull as jobs and commands do."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def is_of(image: str, pull: Pull) -> list[Progress]:
    return [progress for progress in pull.seen if progress.source == image]


async def test_a_missing_image_is_pulled_first_and_shown_layer_by_layer(
    engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    registry.hold = 2_000_000
    pull = Pull(tmp_path, "http://x", engine.volume(), registry.image)

    async def fail_for_want_of_python() -> None:
        with pytest.raises(SourceFailed, match=r"has no python3, which pulls the weights"):
            await pull()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail_for_want_of_python)
        await until(lambda: any(p.bytes_done for p in is_of(registry.image, pull)))
        shown = is_of(registry.image, pull)[-1]
        assert shown.phase is Phase.DOWNLOADING
        assert shown.bytes_total is not None
        assert 5_000_000 <= shown.bytes_total < 6_000_000
        registry.release()
    assert engine.client.images.get(registry.image)
    assert pull.left(engine) == []


async def test_image_and_weights_in_one_pull(engine: Engine, tmp_path: Path) -> None:
    engine.client.images.get(IMAGE).tag(f"{IMAGE}-served")
    for registry in serve(engine, f"{IMAGE}-served"):
        pull = Pull(tmp_path, engine.hub(), engine.volume(), registry.image)
        pulled, is_checked = await pull()
        assert (pulled.image, pulled.size_bytes, is_checked) == (registry.image, SIZE, True)
        sources = list(dict.fromkeys(progress.source for progress in pull.seen))
        assert sources == [registry.image, "hf:org/tiny"]


async def test_a_pull_of_an_image_can_be_stopped(
    engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    registry.hold = 2_000_000
    pull = Pull(tmp_path, "http://x", engine.volume(), registry.image)
    task = asyncio.create_task(pull())
    await until(lambda: any(p.bytes_done for p in is_of(registry.image, pull)))
    await stop(task)
    registry.release()
    with pytest.raises(SourceFailed, match="has no python3"):
        await pull()


async def test_images_that_can_not_be_had(
    engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    volume = engine.volume()
    absent = registry.image.replace(":v1", ":v2")
    with pytest.raises(SourceFailed, match=r"the registry does not have it"):
        await Pull(tmp_path, "http://x", volume, absent)()
    with pytest.raises(SourceFailed, match=r"its registry can't be reached; check the network"):
        await Pull(tmp_path, "http://x", volume, "127.0.0.1:9/iir-test/away:v1")()


async def test_a_registry_that_falls_silent_ends_the_pull(
    engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    registry.hold = 2_000_000
    with pytest.raises(SourceUnreachable, match=r"no byte has come for 0.05 min"):
        await Pull(tmp_path, "http://x", engine.volume(), registry.image)(stall_s=3)


async def test_a_full_disk_is_told_before_and_nothing_is_left_running(
    engine: Engine, tmp_path: Path
) -> None:
    small = engine.volume(type="tmpfs", device="tmpfs", o="size=1m")
    pull = Pull(tmp_path, engine.hub(), small)
    # a volume on tmpfs is empty again once nobody uses it
    with pytest.raises(NotEnoughSpace, match=r"3\.2 MB needed, 1\.0 MB free"):
        await pull()
    assert pull.left(engine) == []


async def test_gates_and_wrong_bytes(engine: Engine, tmp_path: Path) -> None:
    gated = engine.hub({"is_gated": True})
    pull = Pull(tmp_path, gated, engine.volume())
    with pytest.raises(AccessDenied, match="set HF_TOKEN"):
        await pull()
    lying = Pull(tmp_path, engine.hub({"is_lying": True}), engine.volume())
    with pytest.raises(ChecksumMismatch, match="pull again"):
        await lying()
    assert pull.left(engine) == lying.left(engine) == []


async def test_a_stopped_pull_goes_on_where_it_was(engine: Engine, tmp_path: Path) -> None:
    volume, holding = engine.volume(), engine.hub({"hold": 1_500_000})
    pull = Pull(tmp_path, holding, volume)
    task = asyncio.create_task(pull())
    await until(lambda: any(progress.bytes_done >= 1_500_000 for progress in pull.seen))
    (container,) = pull.left(engine)
    assert "HF_ENDPOINT" in str(container.attrs["Config"]["Env"])
    assert container.attrs["HostConfig"]["Privileged"] is False
    assert not container.attrs["HostConfig"]["PortBindings"]
    await stop(task)
    assert pull.left(engine) == []
    blobs = f"{PLACE}/hub/models--org--tiny/blobs"
    part = f"{blobs}/{hashlib.sha256(WEIGHTS).hexdigest()}.incomplete"
    assert engine.run(volume, "stat", "-c", "%s", part) == "1500000\n"
    pull.secrets["HF_ENDPOINT"] = engine.hub()
    await pull()
    last = engine.containers[-1].logs().decode().splitlines()[-1]
    assert last.endswith("model.safetensors bytes=1500000-")
    assert COMMIT in engine.run(volume, "cat", f"{PLACE}/hub/models--org--tiny/refs/main")
