"""Each policy as the setting `ROUTER_POLICY` chooses it: where requests really go."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from router.domain import Provider, Zone
from router.settings import load_settings
from router.store.catalog import add_model, add_provider
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, chat, settled
from tests.router.test_fleet_registry import row

NAMES = ("a", "b")


@asynccontextmanager
async def siblings(
    start: StartRouter,
    *,
    weights: Sequence[float] = (1, 1),
    priorities: Sequence[int] = (10, 10),
    **settings: Any,
) -> AsyncIterator[tuple[RunningRouter, SimulatedEngine, SimulatedEngine]]:
    """Start a router whose model `tiny` is on the endpoints `a` and `b`."""
    a, b = (SimulatedEngine(EngineOptions(models=("tiny",))) for _ in NAMES)
    async with running(a) as url_a, running(b) as url_b, start(**settings) as router:

        def register(connection: Any) -> None:
            for number, (name, url) in enumerate(zip(NAMES, (url_a, url_b), strict=True)):
                provider = Provider(name=name, dialect="openai", base_url=url, zone=Zone.LOCAL)
                add_provider(connection, provider)
                fields = {"weight": weights[number], "priority": priorities[number]}
                add_model(connection, "tiny", row(name, "tiny", **fields))

        router.write(register)
        await router.catch_up()
        yield router, a, b


async def taken(router: RunningRouter, times: int) -> list[tuple[str, str]]:
    """Return endpoint and reason of requests that are sent one after the other."""
    answers = [await router.client.post(CHAT, json=chat()) for _ in range(times)]
    return [(one.headers["x-iir-endpoint"], one.headers["x-iir-reason"]) for one in answers]


async def spread(
    router: RunningRouter, a: SimulatedEngine, b: SimulatedEngine, times: int
) -> Counter[str]:
    """Return how many of so many requests under way at once each endpoint has."""
    for engine in (a, b):
        engine.reset()
        engine.script.add("stall:ms=30000,times=0")
    async with anyio.create_task_group() as group:
        for number in range(times):
            group.start_soon(lambda: router.client.post(CHAT, json=chat()))
            with anyio.fail_after(2):
                while len(a.requests) + len(b.requests) <= number:
                    await anyio.sleep(0.001)
        found = Counter({"a": len(a.requests), "b": len(b.requests)})
        group.cancel_scope.cancel()
    await settled(router)
    return found


async def test_round_robin(start_router: StartRouter) -> None:
    async with siblings(start_router, router_policy="round_robin") as (router, _, _):
        found = await taken(router, 6)
        assert [endpoint for endpoint, _ in found] in (["a", "b"] * 3, ["b", "a"] * 3)
        assert {reason for _, reason in found} == {"round-robin"}


async def test_priority(start_router: StartRouter) -> None:
    async with siblings(start_router, router_policy="priority") as (router, a, b):
        assert await taken(router, 4) == [("a", "priority")] * 4
        assert await spread(router, a, b, 4) == {"a": 4, "b": 0}


async def test_priority_by_number_and_the_next_if_the_first_fails(
    start_router: StartRouter,
) -> None:
    async with siblings(
        start_router, router_policy="priority", priorities=(20, 10), router_retry_share=1
    ) as (router, _, b):
        assert await taken(router, 2) == [("b", "priority")] * 2
        b.script.add("status:code=500")
        assert await taken(router, 1) == [("a", "failover")]


@pytest.mark.parametrize("policy", ["power_of_two", "least_in_flight"])
async def test_the_less_loaded_by_weight(start_router: StartRouter, policy: str) -> None:
    async with siblings(start_router, router_policy=policy) as (router, a, b):
        assert {reason for _, reason in await taken(router, 2)} == {policy.replace("_", "-")}
        assert await spread(router, a, b, 8) == {"a": 4, "b": 4}


@pytest.mark.parametrize("policy", ["power_of_two", "least_in_flight"])
async def test_a_weight_of_four_takes_four_times_as_much(
    start_router: StartRouter, policy: str
) -> None:
    async with siblings(start_router, weights=(4, 1), router_policy=policy) as (router, a, b):
        found = await spread(router, a, b, 10)
        assert found["a"] in {8, 9}  # least-in-flight breaks its ties by chance


def test_power_of_two_is_the_default_and_others_are_refused() -> None:
    assert load_settings().router_policy == "power_of_two"
    with pytest.raises(ValueError, match="router_policy"):
        load_settings(router_policy="random")
