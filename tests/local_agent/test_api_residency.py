"""Two models under a budget that holds one, with real simulated engines; routes and commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from typer.testing import CliRunner

from local_agent.cli.app import app
from local_agent.domain import WorkerState
from shared.kit.clock import monotonic
from tests.local_agent.harness import CHAT, MESSAGES, cli, shown

if TYPE_CHECKING:
    from tests.local_agent.harness import StartAgent

A: dict[str, Any] = {"id": "org/a", "engine": "simulated", "memory": "100 MiB", "aliases": ["a"]}
B: dict[str, Any] = {"id": "b", "engine": "simulated", "memory": "100 MiB"}
ONE = {"memory_budget": "150 MiB", "min_residency_s": 0.05}


@pytest.mark.slow
async def test_three_clients_alternate_between_two_models_of_which_one_fits(
    start_agent: StartAgent,
) -> None:
    answers: list[tuple[int, str]] = []
    async with start_agent(A, B, fields=ONE) as agent:

        async def ask(models: str) -> None:
            for model in models:
                body = {"model": model, "messages": MESSAGES, "max_tokens": 5}
                answer = await agent.client.post(CHAT, json=body, timeout=60)
                answers.append((answer.status_code, model))

        async with anyio.create_task_group() as clients:
            for models in ("aba", "bab", "aab"):
                clients.start_soon(ask, models)
        assert {status for status, _ in answers} == {200}
        assert len(answers) == 9
        rows = await shown(agent, "ps")
        assert sum(row["memory_mb"] for row in rows) == 100
        (held,) = (row for row in rows if row["memory_mb"])
        assert held["state"] == "ready"
        assert sorted(row["state"] for row in rows) == ["cold", "ready"]
        events = agent.agent.supervisor.events()
        assert all(event.to_state is not WorkerState.BACKOFF for event in events)
        reasons = {event.reason for event in events if event.to_state is WorkerState.STOPPING}
        assert reasons <= {"it makes room for b", "it makes room for org/a", None}
    assert agent.agent.supervisor.residency.ledger.held_mb <= 150


@pytest.mark.slow
async def test_streams_are_finished_before_a_swap_and_swaps_are_few(
    start_agent: StartAgent,
) -> None:
    """Each client always has a stream open, or waits for the model that is not there."""
    slow = {"options": {"itl_ms": 20, "tokens": 10}}
    rules = {"memory_budget": "150 MiB", "min_residency_s": 0.5, "swap_after_s": 1.0}
    ends: list[str] = []
    async with start_agent({**A, **slow}, {**B, **slow}, fields=rules) as agent:

        async def stream(models: str) -> None:
            for model in models:
                body = {"model": model, "messages": MESSAGES, "stream": True}
                answer = await agent.client.post(CHAT, json=body, timeout=60)
                ends.append(answer.text.split("\n\n")[-2])

        began = monotonic()
        async with anyio.create_task_group() as clients:
            for models in ("abababab", "babababa", "aabbaabb"):
                clients.start_soon(stream, models)
        lasted_s = monotonic() - began
        assert ends == ["data: [DONE]"] * 24
        events = agent.agent.supervisor.events()
        loads = [event for event in events if event.to_state is WorkerState.STARTING]
        assert len(loads) <= lasted_s / 0.5 + 1


@pytest.mark.slow
async def test_load_plan_pin_unpin_unload(
    start_agent: StartAgent,
) -> None:
    async with start_agent(A, B, fields={**ONE, "min_residency_s": 0}) as agent:
        assert (await shown(agent, "plan", "a"))["verdict"] == "fits"
        loaded = await shown(agent, "load", "a")
        assert (loaded["model"], loaded["state"], loaded["memory_mb"]) == ("org/a", "ready", 100)
        plan = await cli(agent, "plan", "b")
        assert plan.output == (
            "b fits after these have gone: it needs 100 MiB, 50 of 150 MiB are free\n"
            "  org/a (100 MiB)\n"
        )
        pinned = await shown(agent, "pin", "a")
        assert pinned["is_pinned"] is True
        assert "100 MiB, pinned" in (await cli(agent, "ps")).output
        refused = await cli(agent, "load", "b")
        assert refused.code == 1
        assert "iir-agent unpin org/a" in refused.output
        never = await shown(agent, "plan", "b")
        assert (never["verdict"], never["would_go"][0]["is_pinned"]) == ("never", True)
        assert "is pinned" in (await cli(agent, "unload", "a")).output
        chat = await agent.client.post(CHAT, json={"model": "b", "messages": MESSAGES})
        assert chat.status_code == 507
        assert chat.headers["x-should-retry"] == "false"
        assert chat.json()["error"]["code"] == "insufficient_memory"
        assert chat.json()["error"]["plan"] == never
        assert "is not pinned" in (await cli(agent, "unpin", "a")).output
        assert "org/a goes once" in (await cli(agent, "unload", "a")).output
        await agent.until("org/a", WorkerState.COLD)
        answer = await agent.client.post("/internal/models/b/load", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_loading")


@pytest.mark.slow
async def test_models_that_are_not_the_agents_are_refused(
    start_agent: StartAgent,
) -> None:
    async with start_agent() as agent:
        for verb in ("load", "unload", "pin", "unpin", "plan"):
            answer = await agent.client.post(f"/internal/models/tiny/{verb}", json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
            answer = await agent.client.post(f"/internal/models/nobody/{verb}", json={})
            assert answer.status_code == 404
        refused = await cli(agent, "pin", "nobody", "--json")
        assert "does not know the model 'nobody'" in json.loads(refused.output)["error"]


async def test_the_budget_comes_with_a_reload(start_agent: StartAgent) -> None:
    async with start_agent(A, B, fields=ONE) as agent:
        agent.rewrite(A, B, memory_budget="99 MiB")
        assert (await agent.client.post("/internal/reload", json={})).status_code == 200
        plan = (await agent.client.post("/internal/models/a/plan", json={})).json()
        assert (plan["verdict"], plan["budget_mb"], plan["would_go"]) == ("never", 99, [])


async def test_without_an_agent_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IIR_HOME", str(tmp_path))
    monkeypatch.setenv("AGENT_PORT", "1")
    result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, ["load", "m"]))
    assert result.exit_code == 1
    assert "no agent runs here" in result.output
