"""Draining and resuming, and what the agent says it can take."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest
from typer.testing import CliRunner

from local_agent.cli.app import app
from local_agent.domain import WorkerState
from local_agent.errors import AgentDraining
from local_agent.intake import Intake, IntakeState
from shared import __version__
from shared.testing.engine import EngineOptions
from shared.testing.steps import Latency
from tests.local_agent.harness import CHAT, MESSAGES, RunningAgent, StartAgent, cli, shown, until

LATE = EngineOptions(models=("engine/tiny",), latency=Latency(ttft_s=0.3))
BODY = {"model": "tiny", "messages": MESSAGES}
SIMULATED = {"id": "sim", "engine": "simulated", "memory": "100 MiB"}
CAPACITY = "/internal/capacity"


def state(agent: RunningAgent) -> str:
    return agent.agent.intake.state.value


async def test_a_drain_finishes_what_is_there_and_refuses_the_rest(start_agent: StartAgent) -> None:
    async with start_agent(engine=LATE) as agent, anyio.create_task_group() as group:
        statuses = []
        await agent.client.get("/internal/workers")  # loads what serves the drain

        async def ask() -> None:
            statuses.append((await agent.client.post(CHAT, json=BODY)).status_code)

        group.start_soon(ask)
        await until(lambda: agent.agent.intake.in_hand)
        told = (await agent.client.post("/internal/drain", json={})).json()
        assert (told["state"], told["in_hand"]) == ("draining", 1)
        refused = await agent.client.post(CHAT, json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-iir-error-origin"] == "agent"
        infer = await agent.client.post("/infer", json={"prompt": "x"})
        assert infer.json()["error"]["code"] == "draining"
        ready = await agent.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert agent.agent._subject.state() == "draining"
        await until(lambda: state(agent) == "drained")
        await until(lambda: statuses)
        assert statuses == [200]
        assert agent.agent._subject.state() == "draining"  # the router knows no third word
        told = (await agent.client.post("/internal/resume", json={})).json()
        assert told["state"] == "ready"
        assert (await agent.client.post(CHAT, json=BODY)).status_code == 200
        assert (await agent.client.get("/readyz")).status_code == 200


async def test_the_router_hears_of_a_drain_and_its_end_at_once(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        for verb in ("drain", "resume"):
            seen = agent.agent.supervisor.version
            await agent.client.post(f"/internal/{verb}", json={})
            assert agent.agent.supervisor.version > seen  # which is what makes a heartbeat due


async def test_an_agent_that_ends_can_t_be_resumed(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        agent.agent.drain()
        answer = await agent.client.post("/internal/resume", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
        refused = await agent.client.post(CHAT, json=BODY)
        assert refused.status_code == 503
        assert "is stopping" in refused.json()["error"]["message"]


@pytest.mark.slow
async def test_the_commands_wait_for_the_end_of_a_drain(start_agent: StartAgent) -> None:
    async with start_agent(engine=LATE) as agent, anyio.create_task_group() as group:
        group.start_soon(lambda: agent.client.post(CHAT, json=BODY))
        await until(lambda: agent.agent.intake.in_hand)
        drained = await shown(agent, "drain", "--wait")
        assert (drained["state"], drained["in_hand"]) == ("drained", 0)
        assert "drained: nothing is in hand" in (await cli(agent, "ps")).output
        done = await cli(agent, "resume")
        assert (done.code, done.output) == (0, "ready: the agent takes work\n")
        assert "drain" not in (await cli(agent, "ps")).output


@pytest.mark.slow
async def test_capacity_and_the_line_below_the_workers(start_agent: StartAgent) -> None:
    fields = {"memory_budget": "150 MiB"}
    async with start_agent(SIMULATED, fields=fields) as agent:
        capacity = (await agent.client.get(CAPACITY)).json()
        mib = 2**20
        assert capacity == {
            "state": "ready",
            "reason": None,
            "in_hand": 0,
            "queue": capacity["queue"],
            "budget_bytes": 150 * mib,
            "free_bytes": 150 * mib,
            "evictable_bytes": 0,
            "power": capacity["power"],  # as it is on this machine
            "models": [{"id": "sim", "status": "unloaded"}],
        }
        assert capacity["queue"]["running"] == 0
        await agent.client.post("/internal/models/sim/load", json={"wait_s": 20})
        capacity = (await agent.client.get(CAPACITY)).json()
        assert (capacity["free_bytes"], capacity["evictable_bytes"]) == (50 * mib, 100 * mib)
        line = "memory: 100 of 150 MiB held, 50 MiB free, 100 MiB more if idle models go\n"
        assert (await cli(agent, "ps")).output.endswith(line)
        await agent.client.post("/internal/models/sim/pin", json={})
        assert (await agent.client.get(CAPACITY)).json()["evictable_bytes"] == 0
        told = agent.agent._subject.capacity()
        assert (told.budget_bytes, told.free_bytes) == (150 * mib, 50 * mib)


@pytest.mark.slow
async def test_a_quarantined_worker_starts_again_after_a_reset(start_agent: StartAgent) -> None:
    broken = {**SIMULATED, "options": {"seed": "none"}}
    async with start_agent(broken, quarantine_at=1) as agent:
        body = {"model": "sim", "messages": MESSAGES}
        await agent.client.post(CHAT, json=body)
        await agent.until("sim", WorkerState.QUARANTINED)
        refused = await agent.client.post(CHAT, json=body)
        assert "then `iir-agent reset sim`" in refused.json()["error"]["message"]
        starts = len(agent.agent.supervisor.events())
        done = await cli(agent, "reset", "sim")
        assert done.output.startswith("sim has no failures any more")
        await until(lambda: len(agent.agent.supervisor.events()) > starts + 1)
        assert (
            await agent.client.post("/internal/models/nobody/reset", json={})
        ).status_code == 404


def test_a_request_that_was_let_in_counts_until_it_ends() -> None:
    told: list[IntakeState] = []
    intake = Intake(lambda: told.append(intake.state))
    with intake.work():
        intake.drain()
        with pytest.raises(AgentDraining), intake.work():
            pass
        assert intake.in_hand == 1
    assert told == [IntakeState.DRAINING, IntakeState.DRAINED]
    intake.resume()
    assert intake.state is IntakeState.READY


@pytest.mark.parametrize(
    "arguments",
    [["drain"], ["drain", "--wait"], ["resume"], ["events"], ["logs", "m"], ["reset", "m"]],
)
def test_without_an_agent_each_command_says_what_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("IIR_HOME", str(tmp_path))
    monkeypatch.setenv("AGENT_PORT", "1")
    plain = CliRunner().invoke(app, arguments)
    assert (plain.exit_code, "no agent runs here: start it" in plain.output) == (1, True)
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    assert as_json.exit_code == 1
    assert "no agent runs here" in json.loads(as_json.output)["error"]


def test_the_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"iir-agent {__version__}\n"
