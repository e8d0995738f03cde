"""`/internal/models/{id}/logs` and `iir-agent logs`: what an engine prints."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import httpx
import pytest

from local_agent.domain import WorkerState
from local_agent.process.log import log_file
from tests.local_agent.harness import RunningAgent, StartAgent, cli, until

SIMULATED = {"id": "org/sim", "engine": "simulated", "aliases": ["sim"]}
LOGS = "/internal/models/sim/logs"


def log(agent: RunningAgent) -> Path:
    path = log_file(agent.home / "logs", "org/sim")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.slow
async def test_the_last_lines_come_without_secrets(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-of-the-agent")
    async with start_agent(SIMULATED, hf_token="hf_very_secret") as agent:
        log(agent).write_text("one\ntwo hf_very_secret\nthree sk-of-the-agent\nand a part")
        answer = await agent.client.get(LOGS, params={"lines": 2})
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.text == "two ***\nthree ***\nand a part"
        done = await cli(agent, "logs", "sim", "-n", "1", "--json")
        assert json.loads(done.output.splitlines()[0]) == {"model": "sim", "line": "three ***"}


async def test_a_log_is_followed_over_a_restart_of_its_worker(start_agent: StartAgent) -> None:
    async with start_agent({**SIMULATED, "preload": True}, first_s=0.01) as agent:
        first = (await agent.until("org/sim", WorkerState.READY)).pid
        found: list[str] = []

        async def read(response: httpx.Response) -> None:
            async for text in response.aiter_text():
                found.append(text)

        def add(text: str) -> None:
            with log(agent).open("a") as target:
                target.write(text)

        params = {"follow": "true", "lines": "10"}
        async with (
            agent.client.stream("GET", LOGS, params=params) as response,
            anyio.create_task_group() as group,
        ):
            group.start_soon(read, response)
            add("before\n")
            await until(lambda: "before" in "".join(found))
            agent.kill("org/sim")
            await until(lambda: agent.worker("org/sim").pid not in {None, first})
            add("after\n")
            await until(lambda: "after" in "".join(found))
            group.cancel_scope.cancel()
        text = "".join(found)
        assert (text.count("before\n"), text.count("after\n")) == (1, 1)


@pytest.mark.slow
async def test_what_has_no_log_says_why(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        assert (await agent.client.get("/internal/models/tiny/logs")).status_code == 409
        done = await cli(agent, "logs", "tiny")
        assert (done.code, "is not the agent's" in done.output) == (1, True)
        done = await cli(agent, "logs", "nobody", "--json")
        assert "does not know the model 'nobody'" in json.loads(done.output)["error"]
        assert (await agent.client.get("/internal/models/tiny/logs?lines=x")).status_code == 400
    async with start_agent(SIMULATED) as agent:
        assert (await agent.client.get(LOGS)).status_code == 404
        assert "never started here" in (await cli(agent, "logs", "sim")).output


async def test_nothing_that_moves_a_terminal_gets_out(start_agent: StartAgent) -> None:
    async with start_agent(SIMULATED) as agent:
        log(agent).write_text("\x1b[32mgreen\x1b[0m \x1b[2J\x1b]0;title\x07 end\x08\n")
        done = await cli(agent, "logs", "sim")
        assert done.output == "green ]0;title end\n"
