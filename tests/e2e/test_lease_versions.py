"""Agents and routers one release apart: what the release before these numbers said, as it was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from local_agent.control.lease import message
from local_agent.control.lease_core import Due, LeaseCore, LeaseStatus
from shared.contracts.agents import LeaseGrant
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.e2e.lease_world import Process
from tests.router.agents import agent_of
from tests.router.harness import starter
from tests.router.scenes import CHAT, bearer, chat

SAMPLE = Path(__file__).parents[1] / "shared" / "samples" / "lease_protocol_before_seq.json"
OLD: dict[str, Any] = json.loads(SAMPLE.read_text())


async def test_an_older_agent_registers_renews_and_leaves(tmp_path: Path) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with running(engine) as url, starter(tmp_path)() as router:
        agent = await agent_of(router, url)
        headers = bearer(agent.credential)

        async def put(path: str, body: dict[str, Any]) -> Any:
            return await router.client.put(agent.path + path, json=body, headers=headers)

        for _ in range(2):  # as after a lease that was lost
            grant = (await put("", {**OLD["registration"], "base_url": url})).json()
            beat = {**OLD["heartbeat"], "lease_id": grant["lease_id"]}
            assert (await put("/lease", beat)).status_code == 200
            assert (await router.client.post(CHAT, json=chat())).status_code == 200
        assert (await put("/lease", {**beat, "seq": 2, "state": "draining"})).status_code == 200
        assert (await router.client.post(CHAT, json=chat())).status_code == 503
        gone = await router.client.delete(f"{agent.path}/lease", headers=headers)
        assert gone.status_code == 204
        assert (await put("/lease", {**beat, "seq": 3})).status_code == 404


@pytest.mark.parametrize(("kind", "lease_id"), [("registration", None), ("heartbeat", "l-1")])
def test_an_older_router_finds_all_that_it_knows(kind: str, lease_id: str | None) -> None:
    process = Process(1, 7, LeaseCore(Random(1)))
    said = json.loads(message(Due(1, lease_id), process).model_dump_json())
    for name, value in OLD[kind].items():
        assert type(said[name]) is type(value), name
    for name, value in OLD["registration"]["models"][0].items():
        known = said["models"][0][name]
        assert known is None or type(known) is type(value), name


def test_an_older_routers_grant_holds_a_lease() -> None:
    core = LeaseCore(Random(1))
    core.look("sk-iir-any", 0.0)
    core.send(0.0)
    core.hear(LeaseGrant.model_validate(OLD["grant"]), 0.0)
    assert core.status is LeaseStatus.HELD
    assert 9 <= core.look("sk-iir-any", 0.0) <= 11
    assert core.send(10.0) == Due(2, OLD["grant"]["lease_id"])
