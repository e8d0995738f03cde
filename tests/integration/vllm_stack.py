"""A router and an agent with the real vLLM, as a process and in a container."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from local_agent.domain import ModelId, PulledImage
from local_agent.process import tree
from local_agent.weights.store import WeightStore
from tests.integration import container_engine, tiny_qwen2, vllm_environment
from tests.integration.stack import Stack, machine_environment, until
from tests.local_agent.repo_hub import COMMIT, FakeHub

PROCESS, CONTAINER, HUNGRY = "in-process", "in-container", "hungry"
TOKEN = "hf_s3cretvalue"
MESSAGES = [{"role": "user", "content": "hello small world"}]
LOADED_S = 300.0
_REPO = "test/tiny"
_HUB_REPO = "org/tiny"
_CHUNK = 1024 * 1024
_BASE = """
FROM python:{}-slim
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
"""
# vLLM looks at the model's class in a process of its own, and keeps what it saw: else each start takes ten seconds more
_LOOK = """
from vllm.model_executor.models.registry import ModelRegistry
ModelRegistry.models["Qwen2ForCausalLM"].inspect_model_cls()
"""
# as vllm/vllm-openai-cpu has it, with the first argument as the model; `vllm serve` itself asks for
# a package of that name
_ENTRY_POINT = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model"]


def image(engine: Any, interpreter: Path) -> str:
    """Return the name of an image with the real vLLM and the tiny model; build it once.

    The packages are copied from the environment, whose Python has the same version as the image's.
    """
    version = _python_version(interpreter)
    packages = interpreter.parent.parent / "lib" / f"python{version}" / "site-packages"
    recipe = Path(__file__).read_bytes() + Path(tiny_qwen2.__file__).read_bytes()
    digest = hashlib.sha256(recipe + version.encode()).hexdigest()[:8]
    name = f"iir-test/vllm-cpu:v{vllm_environment.VERSION}-{digest}"
    if engine.images.list(name=name):
        return name
    base, _ = engine.images.build(fileobj=io.BytesIO(_BASE.format(version).encode()), rm=True)
    container = engine.containers.create(base, ["python", "-c", _LOOK])
    try:
        place = f"/usr/local/lib/python{version}/site-packages"
        container.put_archive(place, _packed(packages))
        container.put_archive("/", _model())
        container.start()
        assert container.wait(timeout=LOADED_S)["StatusCode"] == 0, container.logs().decode()
        container.commit(
            *name.split(":"),
            conf={
                "Entrypoint": _ENTRY_POINT,
                "Cmd": [],
                "WorkingDir": "/models",
                "Env": ["HF_HUB_OFFLINE=1"],
            },
        )
    finally:
        container.remove(force=True)
    return name


def _python_version(interpreter: Path) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    command = [str(interpreter), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _packed(folder: Path) -> Iterator[bytes]:
    with subprocess.Popen(["tar", "-C", str(folder), "-c", "."], stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        while chunk := tar.stdout.read(_CHUNK):
            yield chunk
    assert tar.returncode == 0


def _model() -> bytes:
    """Return an archive with the model where the repository's name finds it."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, content in tiny_qwen2.files().items():
            info = tarfile.TarInfo(f"models/{_REPO}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return target.getvalue()


class VllmStack(Stack):
    """A router and an agent that serves the tiny model twice, and once with too little memory."""

    def __init__(self, folder: Path, engine: Any, interpreter: Path, image: str) -> None:
        (folder / "weights").mkdir(parents=True)
        super().__init__(folder, folder / "weights")
        self.engine = engine
        self.hub = FakeHub()
        self.hub.files = tiny_qwen2.files()
        self.hub.start()
        repository = WeightStore(self.home / "models").hub.folder(_HUB_REPO)
        self.model_folder = repository / "snapshots" / COMMIT
        self.env.update(
            {
                "AGENT_VLLM_PYTHON": str(interpreter),
                "AGENT_IMAGES": image,
                "HF_TOKEN": TOKEN,
                "HF_ENDPOINT": self.hub.url,
                **{k: v for k, v in machine_environment().items() if k.startswith("DOCKER_")},
            }
        )
        common = {"context": 1024, "parallel": 4}
        options = {"kv_cache_gib": 1, "enforce_eager": True}
        boxed = {**options, "image": image, "repo": _REPO, "shm_gib": 1}
        models = [
            {
                "id": PROCESS,
                "engine": "vllm",
                "preload": True,
                "options": {**options, "repo": _HUB_REPO, "tool_parser": "hermes"},
                **common,
            },
            {
                "id": CONTAINER,
                "engine": "vllm_docker",
                "preload": True,
                "options": {**boxed, "memory_gib": 6},
                **common,
            },
            {
                "id": HUNGRY,
                "engine": "vllm_docker",
                "options": {**boxed, "memory_gib": 1},
                **common,
            },
        ]
        # its weights are in the image: nothing could pull them here
        pulled = PulledImage(image=image, repo=_REPO, size_bytes=0)
        for model in (CONTAINER, HUNGRY):
            WeightStore(self.home / "models").record_pulled(
                ModelId(model), pulled, "2026-01-01T00:00:00+00:00"
            )
        config = {"known_models": False, "models": models}
        (self.home / "agent" / "agent.yaml").write_text(json.dumps(config))

    def start(self) -> None:
        """Start both services, and pull what vLLM as a process needs; the models load meanwhile."""
        self.router.start()
        self.agent.start()
        self.run("local_agent", "pull", PROCESS)

    def chat(self, model: str, *, base: str | None = None, **more: object) -> httpx.Response:
        """Ask for eight greedy tokens, through the router unless another base is given."""
        body = {"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 8, **more}
        url = f"{base or self.base_url}/chat/completions"
        return httpx.post(url, json=body, trust_env=False, timeout=90)

    def load(self, model: str) -> None:
        """Ask the agent to load a model, and do not wait for it."""
        url = f"{self.agent.url}/internal/models/{model}/load"
        httpx.post(url, json={"wait_s": 0}, trust_env=False)

    def answers(self, model: str) -> bool:
        """Tell whether the model answers through the router; refusals must say when to come again."""
        answer = self.chat(model)
        if answer.status_code == 200:
            return True
        assert answer.status_code in {404, 502, 503}, answer.text
        assert answer.status_code != 503 or int(answer.headers["retry-after"]) >= 1
        return False

    def until_answered(self, model: str) -> float:
        """Wait until the model answers; return the seconds that it took."""
        return until(lambda: self.answers(model), LOADED_S, f"{model} answers", every_s=0.5)

    def row(self, model: str) -> dict[str, Any]:
        """Return what the agent shows of a worker."""
        rows = httpx.get(f"{self.agent.url}/internal/workers", trust_env=False).json()
        return next(row for row in rows if row["model"] == model)

    def group(self) -> list[psutil.Process]:
        """Return the processes of the worker that is none of a container."""
        return tree.members(self.row(PROCESS)["pid"])

    def vllm_processes(self) -> list[psutil.Process]:
        """Return what of vLLM lives on this host, whoever started it: it runs beside its model."""
        return [process for process in psutil.process_iter() if self._is_beside_model(process)]

    def _is_beside_model(self, process: psutil.Process) -> bool:
        try:
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            return is_alive and process.cwd() == str(self.model_folder.parent.resolve())
        except psutil.Error:
            return False

    def containers(self) -> list[Any]:
        """Return this agent's containers, ended ones included."""
        agent_id = (self.home / "agent" / "id").read_text().strip()
        return container_engine.of_agent(self.engine, agent_id)

    def close(self) -> None:
        """End whatever lives, on the host and in containers."""
        super().close()
        self.hub.close()
        for process in self.vllm_processes():
            process.kill()
        for container in self.containers():
            container.remove(force=True)
