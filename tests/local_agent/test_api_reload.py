"""A reload of a serving agent: streams go on, what changed restarts, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from local_agent.domain import WorkerState
from tests.local_agent.harness import CHAT, MESSAGES, RunningAgent, StartAgent, external

SLOW = {"itl_ms": 20, "tokens": 25}
SLOWER = {"itl_ms": 20, "tokens": 200}
"""Longer than another worker takes to start anew, on a loaded machine too."""


def simulated(model: str, **fields: Any) -> dict[str, Any]:
    return {"id": model, "engine": "simulated", "preload": True, **fields}


async def reload(agent: RunningAgent) -> dict[str, Any]:
    answer = await agent.client.post("/internal/reload", json={})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


class Stream:
    """A chat that is read in the background."""

    def __init__(self) -> None:
        self.text = ""
        self.started = anyio.Event()
        self.ended = anyio.Event()

    async def read(self, client: httpx.AsyncClient, model: str) -> None:
        body = {"model": model, "messages": MESSAGES, "stream": True}
        async with client.stream("POST", CHAT, json=body) as response:
            assert response.status_code == 200
            async for piece in response.aiter_text():
                self.text += piece
                self.started.set()
        self.ended.set()

    @property
    def is_whole(self) -> bool:
        return self.text.rstrip().endswith("data: [DONE]") and '"error"' not in self.text


@asynccontextmanager
async def streaming(agent: RunningAgent, *models: str) -> AsyncIterator[dict[str, Stream]]:
    """Hold a stream of each model open; on leaving, wait for all of them."""
    streams = {model: Stream() for model in models}
    async with anyio.create_task_group() as group:
        for model, stream in streams.items():
            group.start_soon(stream.read, agent.client, model)
            with anyio.fail_after(10):
                await stream.started.wait()
        yield streams


@pytest.mark.slow
async def test_only_what_changed_restarts_and_no_stream_is_cut(start_agent: StartAgent) -> None:
    same, busy, idle = (simulated(name, options=SLOWER) for name in ("same", "busy", "idle"))
    async with start_agent(same, busy, idle) as agent:
        pids = {}
        for name in ("same", "busy", "idle"):
            pids[name] = (await agent.until(name, WorkerState.READY)).pid
        async with streaming(agent, "same", "busy") as streams:
            faster = {"options": {"tokens": 3}}
            agent.rewrite(
                {**same, "aliases": ["short"], "ttl": 900}, {**busy, **faster}, {**idle, **faster}
            )
            answer = await reload(agent)
            assert answer["changed"] == ["same", "busy", "idle"]
            assert answer["restarting"] == ["busy", "idle"]
            with anyio.fail_after(5):
                while agent.worker("idle").pid in {pids["idle"], None}:
                    await anyio.sleep(0.01)
            assert agent.worker("busy").state is WorkerState.DRAINING
            assert agent.worker("busy").pid == pids["busy"]
            assert not streams["busy"].ended.is_set()
            assert agent.worker("same").ttl_s == 900
        assert streams["same"].is_whole
        assert streams["busy"].is_whole
        await agent.until("busy", WorkerState.READY)
        assert agent.worker("busy").pid != pids["busy"]
        assert agent.worker("same").pid == pids["same"]
        body = {"model": "short", "messages": MESSAGES}
        assert (await agent.client.post(CHAT, json=body)).status_code == 200


async def test_a_removed_model_finishes_its_requests_and_disappears(
    start_agent: StartAgent,
) -> None:
    gone, kept = simulated("gone", options=SLOW), simulated("kept")
    async with start_agent(gone, kept) as agent:
        await agent.until("gone", WorkerState.READY)
        async with streaming(agent, "gone") as streams:
            agent.rewrite(kept)
            assert (await reload(agent))["removed"] == ["gone"]
            body = {"model": "gone", "messages": MESSAGES}
            assert (await agent.client.post(CHAT, json=body)).status_code == 404
        assert streams["gone"].is_whole
        with anyio.fail_after(5):
            while len(agent.agent.supervisor.workers()) > 1:
                await anyio.sleep(0.01)


@pytest.mark.slow
async def test_the_agent_notices_a_change_by_itself_and_says_what_is_wrong(
    start_agent: StartAgent,
) -> None:
    async with start_agent() as agent:
        path = agent.home / "agent" / "agent.yaml"
        entry = external(agent.worker_url, upstream_name="engine/tiny")
        path.write_text(json.dumps({"known_models": False, "models": [entry], "drain": 3}))
        ready: dict[str, Any] = {"config": "ok"}
        with anyio.fail_after(6):
            while ready["config"] == "ok":
                await anyio.sleep(0.05)
                response = await agent.client.get("/readyz")
                ready = response.json()
        assert response.status_code == 200, "it serves as before"
        assert ready["config"] == "agent.yaml, line 1: drain: is no field here"
        agent.rewrite(entry, {**entry, "id": "second"})
        await agent.until("second", WorkerState.EXTERNAL)
        assert (await agent.client.get("/readyz")).json()["config"] == "ok"


async def test_settings_count_without_a_restart(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        entry = external(agent.worker_url, upstream_name="engine/tiny")
        pin = {"pin": True, "weight": 3}
        agent.rewrite(
            {**entry, **pin},
            drain_s=7,
            memory_budget="3 GiB",
            min_residency_s=4,
            labels={"room": "attic"},
        )
        answer = await reload(agent)
        assert answer["settings"] == ["drain_s", "labels", "memory_budget", "min_residency_s"]
        assert answer["notes"] == []
        supervisor = agent.agent.supervisor
        assert agent.agent.drain_s == supervisor.drain_s == 7
        assert supervisor.residency.ledger.budget_mb == 3072
        assert supervisor.residency.min_residency_s == 4
        assert agent.worker("tiny").is_pinned
        assert agent.agent._subject.registration().labels == {"room": "attic"}


async def test_what_the_environment_decides_is_said(start_agent: StartAgent) -> None:
    async with start_agent(agent_drain_s=5) as agent:
        agent.rewrite(external(agent.worker_url, upstream_name="engine/tiny"), drain_s=7)
        (note,) = (await reload(agent))["notes"]
        assert note.startswith("AGENT_DRAIN_S is set and beats drain_s")
        assert agent.agent.drain_s == 5


async def test_no_value_of_a_variable_is_told(
    start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADE_UP", "sk-made-up/with:parts")
    async with start_agent() as agent:
        path = agent.home / "agent" / "agent.yaml"
        path.write_text("models:\n  - {id: x, source: '${env.MADE_UP}'}")
        answer = await agent.client.post("/internal/reload", json={})
        assert answer.status_code == 400
        assert "'${env.MADE_UP}' is no source" in answer.json()["error"]["message"]
        assert "made-up" not in answer.text + (await agent.client.get("/readyz")).text


async def test_a_running_agent_tells_what_its_doctor_finds(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        findings = (await agent.client.get("/internal/doctor")).json()
        found = {finding["check"]: finding for finding in findings}
        assert found["agent"]["level"] == "ok"
        assert found["credential"]["level"] == "note"
        assert found["model tiny"]["message"].startswith("a server of yours at http://127.0.0.1")
