"""Agents whose model is not ready: a request waits there only if nobody else can serve it at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from router.fleet.membership import Membership
from shared.contracts.agents import AgentModel, ModelStatus, Registration
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, chat, two_engines

SLOW_POLL_S = 1000.0


def register(membership: Membership, row_id: int, url: str, status: ModelStatus) -> None:
    registration = Registration(
        incarnation=row_id,
        name="label",
        base_url=url,
        access_token="t" * 32,
        models=(AgentModel(id="tiny", status=status),),
    )
    membership.register(row_id, f"mac{row_id}", f"id{row_id}", registration, "l")


@asynccontextmanager
async def agents(
    start: StartRouter, *statuses: ModelStatus
) -> AsyncIterator[tuple[RunningRouter, list[SimulatedEngine]]]:
    """Start a router that asks its agents, two at most, in their order."""
    engines = [SimulatedEngine(EngineOptions(models=("tiny",))) for _ in range(2)]
    async with (
        running(engines[0]) as first,
        running(engines[1]) as second,
        start(router_catalog_poll_s=SLOW_POLL_S, router_policy="priority") as router,
    ):
        for number, (url, status) in enumerate(zip((first, second), statuses, strict=False), 1):
            register(router.router.fleet.membership, number, url, status)
        router.router.fleet.patch()
        yield router, engines


def waits(engine: SimulatedEngine) -> list[str | None]:
    return [seen.header("prefer") for seen in engine.requests if seen.method == "POST"]


async def test_a_cold_agent_is_not_waited_for_while_another_is_ready(
    start_router: StartRouter,
) -> None:
    async with agents(start_router, "unloaded", "loaded") as (router, (cold, ready)):
        cold.script.add("status:code=503")  # as an agent says `model_loading`
        answer = await router.client.post(CHAT, json=chat())
        assert answer.status_code == 200
        assert answer.headers["x-iir-endpoint"] == "agent:mac2"
        assert waits(cold) == ["wait=0"]
        assert waits(ready) == [None], "nobody else is left, so it may take its time"


@pytest.mark.parametrize("statuses", [("unloaded",), ("unloaded", "loading")])
async def test_it_is_waited_for_where_nobody_is_ready(
    start_router: StartRouter, statuses: tuple[ModelStatus, ...]
) -> None:
    async with agents(start_router, *statuses) as (router, (cold, _)):
        assert (await router.client.post(CHAT, json=chat())).status_code == 200
        assert waits(cold) == [None]


async def test_what_the_client_says_of_its_patience_reaches_agents_alone(
    start_router: StartRouter,
) -> None:
    patience = {"prefer": "respond-async, wait=7"}
    async with agents(start_router, "unloaded") as (router, (cold, _)):
        await router.client.post(CHAT, json=chat(), headers=patience)
        assert waits(cold) == ["wait=7"]
    async with two_engines(start_router) as scene:
        await scene.router.client.post(CHAT, json=chat(), headers=patience)
        assert waits(scene.first) == [None]
