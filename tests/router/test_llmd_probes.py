"""What a router learns of a cluster by asking it: at its start, while it serves, and of its queues."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from router.app import prepare_registry
from router.domain import (
    DeploymentEntry,
    KnownModel,
    ModelsChange,
    PrefixRule,
    Provider,
    ServedModel,
    Zone,
)
from router.settings import load_settings
from router.store.catalog import (
    add_model,
    add_prefix_rule,
    add_provider,
    remove_provider,
)
from router.store.known_models import change_known_models, list_known_models
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.router.gateway import (
    COLD,
    NO_PODS,
    PICKER_GONE,
    POD_BROKE_OFF,
    POD_GONE,
    ROUTE_TIMEOUT,
    cluster,
    gateway,
    hang,
    refusal,
)
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, chat, error_of


async def state(router: RunningRouter) -> str:
    found: str = (await router.client.get("/readyz")).json()["clusters"]["llmd"]
    return found


async def look(router: RunningRouter) -> None:
    await router.router.prober.look()


def output(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was written since the last call."""
    found = capsys.readouterr()
    return found.out + found.err


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
            assert "has not told yet" in error_of(answer)["message"]
            found.listing = None
            await look(router)
            assert await state(router) == "ready"
            assert (await router.client.post(CHAT, json=chat())).status_code == 200


async def test_what_a_cluster_served_before_a_restart_goes_to_no_cloud_while_it_is_away(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud_engine = SimulatedEngine(EngineOptions(models=("corp-private", "corp-other")))
    async with running(cloud_engine) as cloud_url, gateway("corp-private") as (found, url):
        async with start_router(llmd_endpoint=url, router_probe_s=3600.0) as router:
            cloud = Provider(name="cloud", dialect="openai", base_url=cloud_url, zone=Zone.CLOUD)
            router.write(lambda c: add_provider(c, cloud))
            router.write(lambda c: add_prefix_rule(c, PrefixRule("corp-", "cloud")))
            await router.catch_up()
            assert (await router.client.post(CHAT, json=chat("corp-private"))).status_code == 200
        assert "prefix_rules_lead_outside" not in output(capsys)
        found.listing, served = PICKER_GONE, len(found.requests)
        async with start_router(llmd_endpoint=url, router_probe_s=3600.0) as router:
            assert await state(router) == "unreachable"
            answer = await router.client.post(CHAT, json=chat("corp-private"))
            assert answer.headers["x-iir-endpoint"] == "llmd"
            assert len(found.requests) == served + 1
            listed = (await router.client.get("/v1/models")).json()["data"]
            assert "corp-private" in [model["id"] for model in listed]
            assert cloud_engine.requests == []
            answer = await router.client.post(CHAT, json=chat("corp-other"))
            assert answer.headers["x-iir-endpoint"] == "cloud"
        said = output(capsys)
        assert said.count("prefix_rules_lead_outside") == 1
        assert "iir providers refresh llmd" in said
        async with start_router(router_probe_s=3600.0) as router:  # LLMD_ENDPOINT was forgotten
            answer = await router.client.post(CHAT, json=chat("corp-private"))
            assert (answer.status_code, error_of(answer)["code"]) == (
                503,
                "provider_not_configured",
            )
            router.write(lambda c: remove_provider(c, "llmd"))
            await router.catch_up()
            answer = await router.client.post(CHAT, json=chat("corp-private"))
            assert answer.headers["x-iir-endpoint"] == "cloud", "the user has let it go"


async def test_a_cluster_that_was_removed_leaves_nothing_behind(start_router: StartRouter) -> None:
    async with cluster(start_router, router_probe_s=3600.0) as (router, _):
        await router.router.memory.flush()
        assert [each.model.id for each in router.write(list_known_models)] == ["tiny"]
        router.write(lambda c: remove_provider(c, "llmd"))
        assert router.write(list_known_models) == []
        late = ModelsChange(
            cluster="llmd", known=(KnownModel(cluster="llmd", model=ServedModel(id="late")),)
        )
        router.write(lambda c: change_known_models(c, late))
        assert router.write(list_known_models) == []


async def test_a_credential_that_is_not_taken_is_told_once(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    async with cluster(start_router, router_probe_s=3600.0) as (router, found):
        found.listing = refusal(401, '{"error":"Unauthorized"}')
        for _ in range(3):
            await look(router)
        assert await state(router) == "does not take the router's credential"
        # it lives, and requests still hear for themselves
        assert len(router.router.fleet.breakers) == 0
        found.listing = None
        await look(router)
        assert await state(router) == "ready"
        found.listing = refusal(403)
        await look(router)
    said = output(capsys)
    assert said.count("cluster_credential_refused") == 2
    assert said.count("cluster_credential_accepted") == 1


async def test_a_pod_that_is_away_is_no_cluster_that_is_away(start_router: StartRouter) -> None:
    async with cluster(start_router, router_breaker_failures=1, router_probe_s=3600.0) as (
        router,
        found,
    ):
        for listing in (
            POD_GONE,
            POD_BROKE_OFF,
            ROUTE_TIMEOUT,
            refusal(500, '{"error":{"message":"this pod is ill","code":500}}'),
        ):
            found.listing = listing
            await look(router)
            assert await state(router) == "ready"
            assert (await router.client.post(CHAT, json=chat())).status_code == 200
        found.listing = PICKER_GONE
        await look(router)
        assert await state(router) == "unreachable"
        found.listing = POD_GONE
        await look(router)
        assert await state(router) == "its gateway answers, its pods do not"
        assert (await router.client.post(CHAT, json=chat())).status_code == 200


async def test_readyz_tells_when_only_pods_are_away_and_when_one_answers_again(
    start_router: StartRouter,
) -> None:
    """The router itself stays ready: it has other endpoints, and the cluster may have other pods."""
    async with cluster(start_router, router_probe_s=3600.0) as (router, found):
        found.listing = POD_GONE
        for expected in ("ready", "ready", "its gateway answers, its pods do not"):
            await look(router)
            assert await state(router) == expected
        ready = await router.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert (await router.client.post(CHAT, json=chat())).status_code == 200
        await look(router)
        assert await state(router) == "ready", "a pod has answered, though not to the look"
        for _ in range(3):
            await look(router)
        assert await state(router) == "its gateway answers, its pods do not"
        found.listing = None
        await look(router)
        assert await state(router) == "ready"
        found.listing = POD_GONE
        await look(router)
        assert await state(router) == "ready", "it begins anew"


async def test_a_look_that_one_pools_missing_picker_answers_blames_no_other(
    start_router: StartRouter,
) -> None:
    settings = {"router_breaker_failures": 1, "router_probe_s": 3600.0}
    async with cluster(start_router, llmd_model_header="x-pool", **settings) as (router, found):
        found.listing = PICKER_GONE
        await look(router)
        assert (await router.client.post(CHAT, json=chat())).status_code == 200


async def test_a_setting_that_another_provider_makes_useless_is_told_once(
    start_router: StartRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    async with start_router() as router:
        row = Provider(name="llmd", dialect="openai", base_url="http://x", zone=Zone.LOCAL)
        router.write(lambda c: add_provider(c, row))
    settings = load_settings(iir_home=router.settings.iir_home, llmd_endpoint="http://127.0.0.1:1")
    assert not prepare_registry(settings)  # as `serve` does before it
    async with start_router(llmd_endpoint="http://127.0.0.1:1"):
        pass
    assert output(capsys).count("llmd_endpoint_ignored") == 1


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
    assert output(capsys).count("cluster_metrics_unread") == 1
