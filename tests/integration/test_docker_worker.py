"""Workers as containers on a real container engine.

The image holds the simulated engine behind vLLM's own entry point, port and flags.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import Any

import httpx
import pytest

from local_agent.containers import sdk
from local_agent.containers.address import candidates
from local_agent.containers.launcher import AGENT
from local_agent.domain import ModelId, PulledImage
from local_agent.ports import ContainerError, ContainerSpec, Launch
from local_agent.process import free_port
from local_agent.weights.store import WeightStore
from shared.kit.clock import monotonic
from tests.integration import container_engine
from tests.local_agent import repo_hub

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
IMAGE = "iir-test/vllm-openai-cpu:v0.0.1"
BASE = "python:3.11-slim"
PATIENCE_S = 60.0
MESSAGES = [{"role": "user", "content": "hello small world"}]

# takes vLLM's flags, refuses others, and runs the simulated engine as process 1
VLLM = """#!/usr/local/bin/python3
import argparse, os, sys, time
parser = argparse.ArgumentParser(prog="vllm")
commands = parser.add_subparsers(required=True)
serve = commands.add_parser("serve")
serve.add_argument("model")
for flag in ("host", "port", "served-model-name", "max-model-len", "max-num-seqs", "dtype"):
    serve.add_argument("--" + flag, required=True)
serve.add_argument("--enforce-eager", action="store_true")
given = parser.parse_args()
print("cache space", os.environ["VLLM_CPU_KVCACHE_SPACE"], flush=True)
print("token", len(os.environ.get("HF_TOKEN", "")), flush=True)
open("/root/.cache/huggingface/used", "a").write("x")
if given.model == "test/hungry":
    eaten = []
    while True:
        eaten.append(b"x" * 10_000_000)
if given.model == "test/slow":
    time.sleep(600)
if given.model == "test/broken":
    sys.exit("ValueError: no such architecture")
os.execv(sys.executable, [sys.executable, "-m", "shared.testing.simulated_engine",
    "--host", given.host, "--port", given.port, "--model", given.served_model_name,
    "--context", given.max_model_len, "--slots", given.max_num_seqs])
"""
DOCKERFILE = f"""
FROM {BASE}
RUN pip install --no-cache-dir httptools msgspec typing_extensions
COPY shared /app/shared
COPY vllm /usr/local/bin/vllm
ENV PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["vllm", "serve"]
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """Return the SDK's client of this machine's engine, with the image built on it."""
    client = container_engine.connected()
    client.images.build(fileobj=context(), custom_context=True, tag=IMAGE, rm=True)
    yield client
    client.close()


def context() -> io.BytesIO:
    """Return the build context: the Dockerfile, the entry point, and our own shared code."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, text in (("Dockerfile", DOCKERFILE), ("vllm", VLLM)):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text.encode()), 0o755
            archive.addfile(info, io.BytesIO(text.encode()))
        for path in sorted((ROOT / "shared").rglob("*.py")):
            archive.add(path, str(path.relative_to(ROOT)))
    target.seek(0)
    return target


class Agent:
    """`iir-agent serve` as a process, and what it left on the container engine."""

    def __init__(self, home: Path, engine: Any) -> None:
        self.home = home
        self.engine = engine
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = home / "agent.out"
        inherited = {k: v for k, v in os.environ.items() if k.startswith("DOCKER_")}  # noqa: TID251
        self.env = {
            "PATH": os.defpath,
            "HOME": str(Path.home()),
            "PYTHONPATH": str(ROOT),
            "IIR_HOME": str(self.home),
            "ROUTER_URL": "http://127.0.0.1:9",
            "AGENT_PORT": str(self.port),
            "AGENT_DRAIN_S": "1",
            "AGENT_IMAGES": f"{IMAGE},iir-test/absent:v1",
            "HF_TOKEN": "hf_s3cretvalue",
            **inherited,
        }

    def configure(self, *models: dict[str, Any], is_pulled: bool = True) -> None:
        store = WeightStore(self.home / "models")
        for model in models if is_pulled else ():
            option = model["options"]
            pulled = PulledImage(image=option["image"], repo=option["repo"], size_bytes=0)
            store.record_pulled(ModelId(model["id"]), pulled, "2026-01-01T00:00:00+00:00")
        path = self.home / "agent" / "agent.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"known_models": False, "models": models}))

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "local_agent", "serve"], env=self.env, stdout=out, stderr=out
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "local_agent", *arguments],
            env=self.env,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout

    def end(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)

    def get(self, path: str) -> Any:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", trust_env=False, timeout=10).json()

    def worker(self, model: str = "tiny") -> dict[str, Any]:
        try:
            workers = self.get("/internal/workers")
        except httpx.HTTPError:
            return {}
        return next((w for w in workers if w["model"] == model), {})

    def until(self, is_true: Callable[[], object], what: str) -> None:
        deadline = monotonic() + PATIENCE_S
        while not is_true():
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert monotonic() < deadline, f"{what}: {self.worker()} {self.log.read_text()[-3000:]}"
            sleep(0.05)

    def until_ready(self, model: str = "tiny") -> None:
        self.until(lambda: self.worker(model).get("state") == "ready", "ready")

    def until_reason(self, model: str, words: str) -> None:
        self.until(lambda: words in (self.worker(model).get("reason") or ""), words)

    def chat(self, model: str = "tiny") -> str:
        answer = httpx.post(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json={"model": model, "messages": MESSAGES},
            trust_env=False,
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def containers(self) -> list[Any]:
        path = self.home / "agent" / "id"
        if not path.exists():
            return []
        return container_engine.of_agent(self.engine, path.read_text().strip())


def vllm(model: str = "tiny", **fields: Any) -> dict[str, Any]:
    options = {"image": IMAGE, "repo": "test/tiny", "memory_gib": 1, "shm_gib": 1}
    options.update(fields.pop("options", {}))
    return {"id": model, "engine": "vllm_docker", "preload": True, "options": options, **fields}


@pytest.fixture
def agent(tmp_path: Path, engine: Any) -> Iterator[Agent]:
    found = Agent(tmp_path, engine)
    try:
        yield found
    finally:
        found.end(signal.SIGKILL)
        for container in found.containers():
            container.remove(force=True)


def test_a_worker_in_a_container_serves_and_leaves_nothing(agent: Agent) -> None:
    agent.configure(vllm())
    agent.start()
    agent.until_ready()
    assert agent.chat()

    (container,) = agent.containers()
    host = container.attrs["HostConfig"]
    assert container.attrs["Config"]["Cmd"][:5] == [
        "test/tiny",
        "--host",
        "0.0.0.0",
        "--port",
        "8000",
    ]
    assert [b["HostIp"] for b in host["PortBindings"]["8000/tcp"]] == ["127.0.0.1"]
    assert host["Binds"] == ["iir-hf-cache:/root/.cache/huggingface:rw"]
    assert host["Memory"] == host["ShmSize"] == 1024**3
    assert host["Privileged"] is False
    assert host["CapAdd"] in (["SYS_NICE"], ["CAP_SYS_NICE"])
    assert host["NetworkMode"] in {"default", "bridge"}
    # the token reached the container, and no label, command or log
    assert "HF_TOKEN=hf_s3cretvalue" in container.attrs["Config"]["Env"]
    assert "s3cret" not in json.dumps(container.labels) + str(container.attrs["Config"]["Cmd"])
    logs = "".join(p.read_text() for p in (agent.home / "logs").iterdir())
    assert "token 14" in logs
    assert "cache space 4" in logs
    agent.end(signal.SIGTERM)
    assert agent.containers() == []
    assert "s3cret" not in agent.log.read_text() + logs


def test_a_model_is_pulled_served_and_removed(agent: Agent, engine: Any) -> None:
    text = Path(repo_hub.__file__).read_text()
    hub = engine.containers.run(BASE, ["python3", "-c", text, "80", "{}"], detach=True)
    try:
        hub.reload()
        agent.env["HF_ENDPOINT"] = f"http://{hub.attrs['NetworkSettings']['IPAddress']}"
        agent.configure(vllm(preload=False, options={"repo": "org/tiny"}), is_pulled=False)
        agent.start()
        agent.until(lambda: agent.worker().get("state") == "unavailable", "unavailable")
        body = {"model": "tiny", "messages": MESSAGES}
        answer = httpx.post(f"{agent.url}/v1/chat/completions", json=body, trust_env=False)
        assert answer.json()["error"]["code"] == "model_not_pulled"
        assert "run: iir-agent pull tiny" in answer.json()["error"]["message"]

        output = agent.command("pull", "tiny")
        assert "pulled tiny: volume iir-hf-cache (3.1 MB)" in output
        assert "the running agent has it now" in output
        assert agent.chat()
        assert "The model tiny is loaded. Unload it first" in agent.command("rm", "tiny")
        agent.command("unload", "tiny")
        agent.until(lambda: agent.worker().get("state") == "cold", "cold")
        assert agent.command("rm", "tiny") == "removed tiny\n"
        agent.end(signal.SIGTERM)
        assert "pulled tiny: volume iir-hf-cache" in agent.command("pull", "tiny")
        assert agent.command("rm", "tiny") == "removed tiny\n"
        assert agent.containers() == []
    finally:
        hub.remove(force=True)


def test_a_killed_container_is_started_again(agent: Agent) -> None:
    agent.configure(vllm())
    agent.start()
    agent.until_ready()
    (first,) = agent.containers()
    killed = monotonic()
    first.kill()
    agent.until_reason("tiny", "SIGKILL")
    agent.until_ready()
    assert agent.chat()
    (second,) = agent.containers()
    assert second.id != first.id
    print(f"from the kill to the next answer: {monotonic() - killed:.1f} s")  # noqa: T201
    agent.end(signal.SIGTERM)
    assert agent.containers() == []


def test_an_agent_adopts_its_own_and_touches_no_other(agent: Agent, engine: Any) -> None:
    foreign = engine.containers.run(
        BASE, ["sleep", "300"], detach=True, labels={AGENT: str(uuid.uuid4())}
    )
    plain = engine.containers.run(BASE, ["sleep", "300"], detach=True)
    try:
        agent.configure(vllm(preload=False), vllm("other"))
        agent.start()
        agent.until_ready("other")
        assert agent.chat()
        before = {c.name: c.id for c in agent.containers()}
        agent.end(signal.SIGKILL)
        assert {c.name: c.id for c in agent.containers()} == before

        agent.configure(vllm(preload=False), vllm("other", context=1024))
        agent.start()
        agent.until_ready()  # nobody asked: it ran, so it is wanted
        agent.until_ready("other")
        after = {c.name: c.id for c in agent.containers()}
        assert after.keys() == before.keys()
        kept = [name for name in before if before[name] == after[name]]
        assert [name for name in kept if "tiny" in name]
        assert len(kept) == 1  # the changed one was replaced
        assert agent.chat()
        agent.end(signal.SIGTERM)
        assert agent.containers() == []
        for container in (foreign, plain):
            container.reload()
            assert container.status == "running"
    finally:
        foreign.remove(force=True)
        plain.remove(force=True)


def test_an_agent_that_ends_while_a_worker_loads_leaves_nothing(agent: Agent) -> None:
    agent.configure(vllm(options={"repo": "test/slow"}))
    agent.start()
    agent.until(agent.containers, "a container")
    agent.end(signal.SIGTERM)
    assert agent.containers() == []


def test_a_container_that_is_removed_is_replaced(agent: Agent) -> None:
    agent.configure(vllm())
    agent.start()
    agent.until_ready()
    assert agent.process is not None
    (container,) = agent.containers()
    # the engine kills it first: an agent that is quick would see just that
    agent.process.send_signal(signal.SIGSTOP)
    container.remove(force=True)
    agent.process.send_signal(signal.SIGCONT)
    agent.until_reason("tiny", "the container was removed by somebody else")
    agent.until_ready()
    assert agent.chat()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": "iir-test/absent:v1"}, "is not on this host; pull it: iir-agent pull tiny"),
        ({"image": "somebody/else:v1"}, "the image somebody/else:v1 is not allowed"),
        ({"repo": "test/hungry"}, "out of memory: the container went over its limit of 1 GiB"),
        ({"repo": "test/broken"}, "exited with code 1: ValueError: no such architecture"),
    ],
)
def test_what_fails_has_a_named_cause(agent: Agent, options: dict[str, str], words: str) -> None:
    agent.configure(vllm(options=options))
    agent.start()
    agent.until_reason("tiny", words)
    agent.end(signal.SIGTERM)
    assert agent.containers() == []


def test_a_port_that_is_taken_has_a_named_cause(engine: Any) -> None:
    env = dict(os.environ)  # noqa: TID251 - where the engine is
    client = sdk.connect(candidates(env, Path.home()), timeout_s=15)
    holder = engine.containers.run(
        BASE, ["sleep", "300"], detach=True, ports={"8000/tcp": ("127.0.0.1", free_port())}
    )
    holder.reload()
    port = int(holder.attrs["HostConfig"]["PortBindings"]["8000/tcp"][0]["HostPort"])
    labels = {AGENT: str(uuid.uuid4())}

    try:
        with pytest.raises(ContainerError) as refused:
            client.start(
                f"iir-test-{uuid.uuid4().hex[:8]}",
                Launch(("test/tiny",), container=ContainerSpec(image=IMAGE, port=8000)),
                env={},
                labels=labels,
                port=port,
            )
        assert refused.value.strerror == f"port {port} was taken by another program meanwhile"
        assert client.find(labels) == []
    finally:
        holder.remove(force=True)
        client.close()
