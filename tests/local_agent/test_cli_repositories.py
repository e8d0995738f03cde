"""`iir-agent pull`, `ls`, `ps` and `rm` of a repository for vLLM as a process, from the hub to an answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest

from local_agent.domain import WorkerState
from tests.local_agent.harness import CHAT, MESSAGES, ROOT, Done, cli, shown, until, write_yaml
from tests.local_agent.repo_hub import TOKEN, FakeHub

if TYPE_CHECKING:
    from tests.local_agent.harness import RunningAgent, StartAgent

# in place of vLLM's interpreter: checks what vLLM would have to find, and answers like it
ENGINE = f"""#!{sys.executable}
import os, runpy, sys
values = dict(zip(sys.argv, sys.argv[1:]))
assert os.path.isfile(values["--model"] + "/config.json"), "no model"
assert os.environ["HF_HUB_OFFLINE"] == "1" and "HF_TOKEN" not in os.environ
sys.path.insert(0, {str(ROOT)!r})
port, name = values["--port"], values["--served-model-name"]
sys.argv = ["engine", "--host", "127.0.0.1", "--port", port, "--model", name]
runpy.run_module("shared.testing.simulated_engine", run_name="__main__")
"""


def model(name: str, **more: object) -> dict[str, Any]:
    options = {"repo": "org/tiny"}
    return {"id": name, "engine": "vllm", "memory": "100 MB", "options": options, **more}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "vllm-python"
    path.write_text(ENGINE)
    path.chmod(0o755)
    return path


async def ask(agent: RunningAgent, name: str) -> tuple[int, Any]:
    answer = await agent.client.post(CHAT, json={"model": name, "messages": MESSAGES})
    return answer.status_code, answer.json()


async def listed(agent: RunningAgent) -> dict[str, Any]:
    data: list[dict[str, Any]] = (await agent.client.get("/v1/models")).json()["data"]
    return data[0]


@pytest.mark.slow
async def test_a_repository_is_pulled_with_progress_and_then_served(
    start_agent: StartAgent, hub: FakeHub, engine: Path
) -> None:
    hub.hold = 1_500_000
    hub.is_gated = True
    settings = {"agent_vllm_python": engine, "hf_endpoint": hub.url, "hf_token": TOKEN}
    async with start_agent(model("org/m", aliases=["m"]), **settings) as agent:
        status, body = await ask(agent, "m")
        assert (status, body["error"]["code"]) == (404, "model_not_pulled")
        assert "not pulled; run: iir-agent pull org/m" in body["error"]["message"]
        found = await listed(agent)
        assert (found["status"], found["is_pulled"]) == ({"value": "unloaded"}, False)
        assert [row["status"] for row in await shown(agent, "ls")] == ["not pulled"]

        pulls: list[Done] = []

        async def pull() -> None:
            pulls.append(await cli(agent, "pull", "m"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pull)
            marks = agent.agent.supervisor.pull_marks
            held = 1_500_024  # with the two small files
            await until(lambda: (far := marks.progress(found["id"])) and far.bytes_done >= held)
            await agent.until("org/m", WorkerState.PULLING)
            status, body = await ask(agent, "m")
            assert (status, body["error"]["code"]) == (404, "model_not_pulled")
            words = "model org/m is being pulled (downloading, 49 % of 3.1 MB"
            assert body["error"]["message"].startswith(words)
            progress = body["error"]["progress"]
            assert (progress["phase"], progress["bytes_done"]) == ("downloading", 1_500_024)
            assert progress["bytes_total"] == 3_072_024
            found = await listed(agent)
            assert found["status"]["value"] == "downloading"
            assert found["status"]["progress"]["bytes_total"] == 3_072_024
            assert "downloading  hf:org/tiny  49 % of 3.1 MB" in (await cli(agent, "ps")).output
            hub.release()
        assert pulls[0].code == 0
        place = "$IIR_HOME/models/.hub/models--org--tiny (3.1 MB)"
        assert f"pulled org/m: {place}" in pulls[0].output
        (row,) = await shown(agent, "ls")
        assert (row["status"], row["size_bytes"]) == ("unloaded", 3_072_024)

        status, body = await ask(agent, "m")
        assert status == 200, body
        done = await cli(agent, "rm", "m")
        assert "The model org/m is loaded. Unload it first" in done.output
        await cli(agent, "unload", "m")
        await agent.until("org/m", WorkerState.COLD)
        assert (await cli(agent, "rm", "m")).output == "removed org/m\n"
        assert not list((agent.home / "models" / ".hub").glob("models--*"))
        assert (await ask(agent, "m"))[0] == 404
        done = await cli(agent, "rm", "m")
        assert (done.code, "there are no weights of org/m" in done.output.lower()) == (1, True)


@pytest.mark.slow
async def test_models_share_a_repository(
    start_agent: StartAgent, hub: FakeHub, engine: Path
) -> None:
    settings = {"agent_vllm_python": engine, "hf_endpoint": hub.url}
    async with start_agent(model("a"), model("b"), **settings) as agent:
        assert (await cli(agent, "pull", "a")).code == 0
        assert [row["is_pulled"] for row in await shown(agent, "ls")] == [True, True]
        assert (await ask(agent, "b"))[0] == 200
        assert "The model b is loaded. Unload it" in (await cli(agent, "rm", "a")).output


@pytest.fixture
def alone(tmp_path: Path, hub: FakeHub, engine: Path) -> dict[str, str]:
    """Return the environment of an `iir-agent` that no agent runs beside."""
    write_yaml(tmp_path, (model("m"),), {})
    return {
        "PATH": os.defpath,
        "IIR_HOME": str(tmp_path),
        "AGENT_PORT": "9",
        "HF_ENDPOINT": hub.url,
        "AGENT_VLLM_PYTHON": str(engine),
    }


def run(env: dict[str, str], *arguments: str) -> Done:
    line = [sys.executable, "-m", "local_agent", *arguments]
    done = subprocess.run(
        line,
        env=env,
        cwd=ROOT,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    return Done(done.returncode, done.stdout.decode())


def orphans(home: Path) -> list[psutil.Process]:
    return [one for one in psutil.process_iter() if _pulls_into(home, one)]


def _pulls_into(home: Path, process: psutil.Process) -> bool:
    try:
        is_alive = process.status() != psutil.STATUS_ZOMBIE
        return is_alive and process.environ().get("HF_HUB_CACHE", "").startswith(str(home))
    except psutil.Error:
        return False


@pytest.mark.slow
async def test_a_pull_whose_command_was_killed_ends_too_and_nobody_else_pulls_until_then(
    alone: dict[str, str], hub: FakeHub, tmp_path: Path
) -> None:
    hub.hold = 1_500_000
    line = [sys.executable, "-m", "local_agent", "pull", "m", "--json"]
    async with await anyio.open_process(line, env=alone, cwd=ROOT) as child:
        assert child.stdout is not None
        said = b""
        with anyio.fail_after(20):
            while b'"downloading"' not in said:
                said += await child.stdout.receive()
        child.kill()
    (orphan,) = orphans(tmp_path)
    done = await anyio.to_thread.run_sync(run, alone, "pull", "m")
    assert (done.code, "by another process: wait for it" in done.output) == (1, True)
    hub.release()
    await until(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)
    done = await anyio.to_thread.run_sync(run, alone, "pull", "m")
    assert (done.code, "pulled m: " in done.output) == (0, True)


@pytest.mark.slow
def test_without_vllm_nothing_is_pulled_but_it_can_be_removed(
    alone: dict[str, str], tmp_path: Path
) -> None:
    assert run(alone, "pull", "m").code == 0
    without = {**alone, "AGENT_VLLM_PYTHON": str(tmp_path / "nothing")}
    done = run(without, "pull", "m")
    assert (done.code, "vLLM is not installed" in done.output) == (1, True)
    assert (run(without, "rm", "m")).output == "removed m\n"
    assert not list((tmp_path / "models" / ".hub").glob("models--*"))
    assert "there are no weights of m" in run(without, "rm", "m").output


@pytest.mark.slow
@pytest.mark.parametrize("has_vllm", [True, False])
def test_doctor_says_what_is_missing(alone: dict[str, str], tmp_path: Path, has_vllm: bool) -> None:
    env = alone if has_vllm else {**alone, "AGENT_VLLM_PYTHON": str(tmp_path / "nothing")}
    text = run(env, "doctor", "--json").output
    findings = [one for one in json.loads(text) if one["check"] == "model m"]
    assert len(findings) == 1
    words = "its weights are not on this host" if has_vllm else "vLLM is not installed"
    assert words in findings[0]["message"]
    assert not has_vllm or findings[0]["fix"] == "iir-agent pull m"
