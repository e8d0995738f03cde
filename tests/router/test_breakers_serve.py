"""Breakers over the wire: who is spared after failures, who is not, and how traffic comes back."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from router.domain import Provider, Zone
from router.store.catalog import add_model, add_provider
from shared.kit.clock import monotonic
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, OneEngine, chat, error_of, one_engine, settled, two_engines
from tests.router.test_fleet_registry import row

FAILURES = 3
BOTH = EngineOptions(models=("tiny", "other"))


class Ahead:
    """The monotonic clock, and as much more as a test says."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return monotonic() + self.s


async def ask(scene: OneEngine, model: str = "tiny") -> httpx.Response:
    return await scene.client.post(CHAT, json=chat(model))


async def add_other(router: RunningRouter, provider: str = "engine") -> None:
    """Add a sibling on the same endpoint."""
    router.write(lambda c: add_model(c, "other", row(provider, "other")))
    await router.catch_up()


async def break_tiny(scene: OneEngine) -> None:
    for _ in range(FAILURES):
        scene.engine.script.add("status:code=500,shape=openai")
        assert (await ask(scene)).status_code == 500


async def test_a_failing_model_is_spared_and_its_sibling_is_not(start_router: StartRouter) -> None:
    async with one_engine(start_router, BOTH, router_breaker_failures=FAILURES) as scene:
        await add_other(scene.router)
        await break_tiny(scene)
        asked = len(scene.engine.requests)
        spared = await ask(scene)
        assert (spared.status_code, error_of(spared)["code"]) == (503, "circuit_open")
        assert int(spared.headers["retry-after"]) >= 1
        assert len(scene.engine.requests) == asked
        assert (await ask(scene, "other")).status_code == 200
        metrics = (await scene.client.get("/metrics")).text
        assert "iir_breakers_not_closed 1.0" in metrics


async def test_its_traffic_goes_to_the_next_endpoint_at_once(start_router: StartRouter) -> None:
    async with two_engines(
        start_router, router_breaker_failures=FAILURES, router_retry_share=1
    ) as scene:
        scene.first.script.add("status:code=500,times=0")
        found = [(await scene.client.post(CHAT, json=chat())).headers for _ in range(FAILURES + 2)]
        assert [one["x-iir-endpoint"] for one in found] == ["second"] * len(found)
        assert [one["x-iir-attempts"] for one in found] == ["2"] * FAILURES + ["1"] * 2


async def test_an_endpoint_that_cant_be_reached_is_spared_as_a_whole(
    start_router: StartRouter,
) -> None:
    engine = SimulatedEngine(BOTH)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with (
            running(engine) as url,
            start_router(
                upstream=url, models=("healthy",), router_breaker_failures=FAILURES
            ) as router,
        ):

            def register(connection: Any) -> None:
                gone = Provider(name="gone", dialect="openai", base_url=dead, zone=Zone.LOCAL)
                add_provider(connection, gone)
                for model in ("tiny", "other"):
                    add_model(connection, model, row("gone", model))
                add_model(connection, "steady", row("engine", "tiny"))

            router.write(register)
            await router.catch_up()
            codes = []
            for model in (*["tiny"] * FAILURES, "tiny", "other", "steady"):
                answer = await router.client.post(CHAT, json=chat(model))
                codes.append(answer.status_code)
            assert codes == [502] * FAILURES + [503, 503, 200]


@pytest.mark.parametrize("code", [400, 404, 413, 422, 429, 507])
async def test_what_is_no_fault_of_the_model_trips_nothing(
    start_router: StartRouter, code: int
) -> None:
    async with one_engine(start_router, router_breaker_failures=FAILURES) as scene:
        for _ in range(3 * FAILURES):
            scene.engine.script.add(f"status:code={code},shape=openai")
            assert (await ask(scene)).status_code == code
        assert len(scene.router.router.fleet.breakers) == 0
        assert (await ask(scene)).status_code == 200


async def test_a_clients_mistake_between_failures_proves_the_model_works(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router, router_breaker_failures=FAILURES) as scene:
        for code in (500, 500, 400, 500, 500):
            scene.engine.script.add(f"status:code={code},shape=openai")
            assert (await ask(scene)).status_code == code
        assert (await ask(scene)).status_code == 200


async def test_half_open_one_trial_goes_through_and_closes_it(start_router: StartRouter) -> None:
    clock = Ahead()
    async with one_engine(start_router, router_breaker_failures=FAILURES, clock=clock) as scene:
        await break_tiny(scene)
        asked = len(scene.engine.requests)
        clock.s += 2.5
        scene.engine.script.add("slow:ms=150")
        trial = asyncio.ensure_future(ask(scene))
        await scene.engine.journal.wait_for(lambda: len(scene.engine.requests) > asked)
        others = [(await ask(scene)).status_code for _ in range(4)]
        assert others == [503] * 4
        assert (await trial).status_code == 200
        assert len(scene.engine.requests) == asked + 1
        assert [(await ask(scene)).status_code for _ in range(4)] == [200] * 4


async def test_a_failed_trial_opens_it_for_longer(start_router: StartRouter) -> None:
    clock = Ahead()
    async with one_engine(start_router, router_breaker_failures=FAILURES, clock=clock) as scene:
        await break_tiny(scene)
        for wait_s in (2, 4, 8):
            waits = int((await ask(scene)).headers["retry-after"])
            assert wait_s - 1 <= waits <= wait_s
            clock.s += wait_s
            scene.engine.script.add("status:code=500,shape=openai")
            assert (await ask(scene)).status_code == 500


async def test_a_trial_whose_client_leaves_lets_the_next_one_try(
    start_router: StartRouter,
) -> None:
    clock = Ahead()
    async with one_engine(start_router, router_breaker_failures=FAILURES, clock=clock) as scene:
        await break_tiny(scene)
        clock.s += 2.5
        scene.engine.script.add("stall")
        with pytest.raises(httpx.ReadTimeout):
            await scene.client.post(CHAT, json=chat(), timeout=0.1)
        await settled(scene.router)
        assert (await ask(scene)).status_code == 200
        assert len(scene.router.router.fleet.breakers) == 0


async def test_a_probe_brings_an_endpoint_back_before_its_time(start_router: StartRouter) -> None:
    engine = SimulatedEngine(BOTH)
    async with running(engine) as url:
        port = int(url.rpartition(":")[2])
    # it is gone now
    async with start_router(
        upstream=url, models=("tiny",), router_breaker_failures=FAILURES
    ) as router:
        for _ in range(FAILURES):
            assert (await router.client.post(CHAT, json=chat())).status_code == 502
        await router.router.prober.look()
        assert (await router.client.post(CHAT, json=chat())).status_code == 503
        async with running(SimulatedEngine(BOTH), port=port):
            await router.router.prober.look()
            assert (await router.client.post(CHAT, json=chat())).status_code == 200
