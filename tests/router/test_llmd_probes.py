"""What a router learns of a cluster by asking it: at its start, while it serves, and of its queues."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from router.domain import DeploymentEntry, Provider, Zone
from router.store.catalog import add_model, add_provider
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.router.gateway import COLD, NO_PODS, PICKER_GONE, cluster, gateway, hang, refusal
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, chat, error_of


async def state(router: RunningRouter) -> str:
    found: str = (await router.client.get("/readyz")).json()["clusters"]["llmd"]
    return found


async def look(router: RunningRouter) -> None:
    await router.router.prober.look()


async def with_engine(router: RunningRouter, url: str, priority: int = 100) -> None:
    """Deploy the model `tiny` in the cluster, and on an engine."""
    engine = Provider(name="engine", dialect="openai", base_url=url, zone=Zone.LOCAL)
    router.write(lambda c: add_provider(c, engine))
    for provider, number in (("llmd", 100), ("engine", priority)):
        row = DeploymentEntry(provider=provider, upstream_name="tiny", priority=number)
        router.write(partial(add_model, name="tiny", deployment=row))
    await router.catch_up()


async def test_a_cluster_that_is_away_does_not_keep_the_router_from_starting(
    start_router: StartRouter,
) -> None:
    async with gateway() as (found, url):
        found.listing = PICKER_GONE
        async with start_router(llmd_endpoint=url, router_probe_s=3600.0) as router:
            assert await state(router) == "unreachable"
            answer = await router.client.post(CHAT, json=chat())
            assert answer.status_code == 404
            assert "could not be asked" in error_of(answer)["message"]
            found.listing = None
            await look(router)
            assert await state(router) == "ready"
            assert (await router.client.post(CHAT, json=chat())).status_code == 200


async def test_a_cluster_that_hangs_holds_the_start_up_for_seconds_only(
    start_router: StartRouter,
) -> None:
    async with gateway() as (found, url):
        found.listing = hang
        with anyio.fail_after(8):
            async with start_router(llmd_endpoint=url, router_probe_s=3600.0) as router:
                assert (await router.client.get("/readyz")).status_code == 200


async def test_who_asks_never_is_not_asked_at_the_start_either(start_router: StartRouter) -> None:
    async with cluster(start_router, router_probe_s=0.0) as (router, found):
        assert found.probes == 0
        assert await state(router) == "unknown"


@pytest.mark.parametrize("listing", [NO_PODS, COLD])
async def test_a_cold_cluster_is_asked_last_whatever_its_priority(
    start_router: StartRouter, listing: object
) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with (
        running(engine) as url,
        cluster(start_router, router_probe_s=3600.0) as (router, found),
    ):
        await with_engine(router, url, priority=900)
        answer = await router.client.post(CHAT, json=chat())
        assert answer.headers["x-iir-endpoint"] == "llmd"
        found.listing = listing  # type: ignore[assignment] # one of those of the module
        await look(router)
        assert await state(router) == "cold"
        answer = await router.client.post(CHAT, json=chat())
        assert answer.headers["x-iir-endpoint"] == "engine"
        assert answer.headers["x-iir-attempts"] == "1"
        found.listing = None
        await look(router)
        answer = await router.client.post(CHAT, json=chat())
        assert answer.headers["x-iir-endpoint"] == "llmd"


async def test_a_web_server_that_is_no_gateway_is_spared(start_router: StartRouter) -> None:
    async with cluster(start_router, router_breaker_failures=2, router_probe_s=3600.0) as (
        router,
        found,
    ):
        found.listing = refusal(200, "<html>Welcome to nginx</html>")
        for _ in range(2):
            await look(router)
        assert await state(router) == "unreachable"
        answer = await router.client.post(CHAT, json=chat())
        assert (answer.status_code, error_of(answer)["code"]) == (503, "circuit_open")


async def test_pools_without_a_common_list_are_no_fault(start_router: StartRouter) -> None:
    async with cluster(start_router, router_probe_s=3600.0) as (router, found):
        found.listing = refusal(404)
        await look(router)
        assert await state(router) == "answers, without a list of models"
        row = DeploymentEntry(provider="llmd", upstream_name="tiny")
        router.write(lambda c: add_model(c, "named", row))
        await router.catch_up()
        assert (await router.client.post(CHAT, json=chat("named"))).status_code == 200


async def test_what_waits_in_the_cluster_counts_when_an_endpoint_is_chosen(
    start_router: StartRouter,
) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with running(engine) as engine_url, gateway() as (found, url):
        found.metrics = b"llm_d_epp_ready_endpoints 2\nllm_d_epp_average_queue_size 3\n"
        settings = {"router_policy": "least_in_flight", "router_probe_s": 3600.0}
        async with start_router(llmd_endpoint=url, llmd_metrics_url=url, **settings) as router:
            await with_engine(router, engine_url)
            [found_llmd] = [
                each
                for each in router.router.fleet.resolve("tiny").candidates
                if each.deployment.endpoint.id == "llmd"
            ]
            assert found_llmd.load.queued == 6
            for _ in range(4):
                answer = await router.client.post(CHAT, json=chat())
                assert answer.headers["x-iir-endpoint"] == "engine"
            found.metrics = b"llm_d_epp_ready_endpoints 0\n"
            await look(router)
            assert await state(router) == "cold"


async def test_metrics_that_are_not_there_are_told_once_and_cost_nothing_else(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    async with gateway() as (_, url):
        away = {"llmd_metrics_url": "http://127.0.0.1:1", "router_probe_s": 3600.0}
        async with start_router(llmd_endpoint=url, **away) as router:
            for _ in range(3):
                await look(router)
            assert await state(router) == "ready"
            assert (await router.client.post(CHAT, json=chat())).status_code == 200
    output = capsys.readouterr()
    assert (output.out + output.err).count("cluster_metrics_unread") == 1
