"""An llm-d cluster that does not serve: what clients get, where their requests go, and how long that takes."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from router.domain import DeploymentEntry, Provider, TimeLimits, Zone
from router.store.catalog import add_model, add_provider
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.loopback_sdks import openai_at
from tests.router.gateway import (
    COLD,
    NO_PODS,
    PICKER_GONE,
    POD_BROKE_OFF,
    POD_GONE,
    POD_REFUSED,
    RESET,
    ROUTE_TIMEOUT,
    SATURATED,
    Answering,
    cluster,
    deploy,
    hang,
    refusal,
)
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, chat, error_event_of, error_of

# the sidecar of prefill and decode, and a gateway that was told to answer in JSON
SIDECARS = '{"object":"error","message":"read tcp 10.1.2.3:43210: reset by peer","code":502}'
GATEWAYS_JSON = (
    '{"code":503,"message":"upstream connect error: remote connection failure 10.1.2.3"}'
)
ERRORS = [
    (SATURATED, 429, "cluster_contended"),
    (refusal(429, "ttl", "rejected-ttl-expired"), 429, "cluster_contended"),
    (refusal(429, "system saturated, sheddable request dropped"), 429, "cluster_contended"),
    (refusal(429, '{"error":{"message":"too many","code":429}}'), 429, "cluster_contended"),
    (refusal(429, "request evicted by flow control"), 429, "cluster_evicted"),
    (refusal(429, "gone", "evicted-priority"), 429, "cluster_evicted"),
    (COLD, 503, "cluster_cold"),
    (NO_PODS, 503, "cluster_cold"),
    (refusal(503, "full", "rejected-saturated"), 429, "cluster_contended"),
    (refusal(503, "stop", "rejected-shutting-down"), 503, "cluster_unavailable"),
    (PICKER_GONE, 503, "cluster_unavailable"),
    (refusal(503, "busy"), 503, "cluster_unavailable"),
    (ROUTE_TIMEOUT, 504, "upstream_timeout"),
    (refusal(504), 504, "upstream_timeout"),
    (POD_GONE, 503, "cluster_unavailable"),
    (refusal(503, f"{RESET}connection timeout"), 503, "cluster_unavailable"),
    (refusal(503, "no healthy upstream"), 503, "cluster_unavailable"),
    (refusal(503, f"{RESET}overflow"), 429, "cluster_contended"),
    (POD_BROKE_OFF, 502, "upstream_interrupted"),
    (refusal(502, f"{RESET}remote reset"), 502, "upstream_interrupted"),
    (refusal(503, f"{RESET}protocol error"), 502, "upstream_interrupted"),
    (refusal(500, "inference error: Internal - panic at 10.1.2.3:9002"), 502, "upstream_failed"),
    (refusal(502, SIDECARS), 502, "upstream_error"),
    (refusal(503, GATEWAYS_JSON), 503, "cluster_unavailable"),
    (refusal(404), 404, "model_not_found"),
    (refusal(404, "no route"), 404, "model_not_found"),
    (refusal(412, "conditional decode"), 412, "upstream_error"),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_every_error_is_openais_envelope(start_router: StartRouter, stream: bool) -> None:
    async with cluster(start_router, router_attempts=1) as (router, found):
        for answering, status, code in ERRORS:
            found.next.append(answering)
            answer = await router.client.post(CHAT, json=chat(stream=stream))
            assert (answer.status_code, error_of(answer)["code"]) == (status, code)
            assert answer.headers["x-iir-error-origin"] == "upstream"
            assert "10.1.2.3" not in answer.text
            assert ("retry-after" in answer.headers) == (status in {429, 503})
            if code in {"cluster_evicted", "cluster_cold"}:
                assert 5 <= int(answer.headers["retry-after"]) <= 7


async def test_a_request_that_the_picker_does_not_take_hears_why_but_not_where(
    start_router: StartRouter,
) -> None:
    async with cluster(start_router) as (router, found):
        for reason, is_shown in (
            ("model not found in request body", True),
            ("dial tcp 10.1.2.3:8000 refused", False),
            ("http://llm-d-epp.llm-d.svc:9002", False),
            ("llm-d-epp.llm-d.svc.cluster.local", False),
            ("[fe80::1] is away", False),
            ("r\u00e9fus\u00e9", False),
        ):
            found.next.append(refusal(400, f"inference error: BadRequest - {reason}"))
            answer = await router.client.post(CHAT, json=chat())
            error = error_of(answer)
            assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
            assert answer.headers["x-iir-attempts"] == "1"
            assert (reason in error["message"]) == is_shown
        found.next.append(refusal(400, "<html>nginx</html>"))
        answer = await router.client.post(CHAT, json=chat())
        assert "nginx" not in answer.text


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (400, "log"),
        (405, "allow POST"),
        (408, "Ask again"),
        (412, "Send it whole"),
        (413, "shorten"),
        (418, "log"),
    ],
)
async def test_a_refusal_in_text_says_what_to_do(
    start_router: StartRouter, status: int, step: str
) -> None:
    async with cluster(start_router, router_attempts=1) as (router, found):
        found.next.append(refusal(status, "<html>10.1.2.3</html>"))
        answer = await router.client.post(CHAT, json=chat())
        message = error_of(answer)["message"]
        assert answer.status_code == status
        assert step in message
        assert str(status) in message
        assert "10.1.2.3" not in answer.text


async def test_a_model_servers_own_error_passes(start_router: StartRouter) -> None:
    async with cluster(start_router) as (router, found):
        found.pod.script.add("status:code=400,shape=vllm")
        answer = await router.client.post(CHAT, json=chat())
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "400"


async def test_retry_after_is_spread_and_the_pods_own_counts(start_router: StartRouter) -> None:
    async with cluster(start_router, router_attempts=1) as (router, found):
        found.next.extend([SATURATED] * 30)
        waits = set()
        for number in range(30):
            headers = {"x-request-id": f"request-{number}"}
            answer = await router.client.post(CHAT, json=chat(), headers=headers)
            waits.add(answer.headers["retry-after"])
        assert waits == {"1", "2", "3"}
        error = '{"error":{"message":"loading","type":"x","param":null,"code":503}}'
        found.next.append(refusal(503, error, **{"retry-after": "20"}))
        answer = await router.client.post(CHAT, json=chat())
        assert answer.headers.get_list("retry-after") == ["20"]
        found.next.append(refusal(429, "local_rate_limited", **{"retry-after": "9"}))
        answer = await router.client.post(CHAT, json=chat())
        assert answer.headers.get_list("retry-after") == ["9"]


async def test_the_sdk_raises_what_it_raises_for_openai(start_router: StartRouter) -> None:
    async with (
        cluster(start_router, router_attempts=1) as (router, found),
        openai_at(router.base_url, api_key="none") as sdk,
    ):
        messages: Any = [{"role": "user", "content": "Hi"}]
        found.next.append(SATURATED)
        with pytest.raises(openai.RateLimitError) as busy:
            await sdk.chat.completions.create(model="tiny", messages=messages)
        assert busy.value.code == "cluster_contended"
        found.next.append(PICKER_GONE)
        with pytest.raises(openai.InternalServerError) as gone:
            await sdk.chat.completions.create(model="tiny", messages=messages, stream=True)
        assert gone.value.code == "cluster_unavailable"


async def test_errors_of_messages_have_anthropics_shape(start_router: StartRouter) -> None:
    async with cluster(start_router, router_attempts=1) as (router, found):
        found.next.append(COLD)
        body = chat(max_tokens=5)
        answer = await router.client.post("/v1/messages", json=body)
        assert answer.status_code == 503
        assert answer.json()["type"] == "error"
        assert (await router.client.post("/v1/messages", json=body)).status_code == 200


# ── where a request goes then ────────────────────────────────────────────────────────────────


async def with_cloud(router: RunningRouter, url: str, model: str = "tiny") -> None:
    """Deploy a model in the cluster, and for when that fails in a cloud."""
    cloud = Provider(name="cloud", dialect="openai", base_url=url, zone=Zone.CLOUD)
    router.write(lambda c: add_provider(c, cloud))
    await deploy(router, model, priority=10)
    row = DeploymentEntry(provider="cloud", upstream_name=model, priority=20)
    router.write(lambda c: add_model(c, model, row))
    await router.catch_up()


async def test_a_cluster_that_can_not_serve_spills_over(start_router: StartRouter) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with running(engine) as url, cluster(start_router) as (router, found):
        await with_cloud(router, url)
        for answering in (SATURATED, COLD, PICKER_GONE, refusal(404, "no route")):
            router.router.fleet.rests.forget("llmd")
            found.next.append(answering)
            answer = await router.client.post(CHAT, json=chat())
            assert answer.status_code == 200
            assert answer.headers["x-iir-endpoint"] == "cloud"
            assert answer.headers["x-iir-attempts"] == "2"


async def test_a_request_confined_to_the_cluster_never_spills_over(
    start_router: StartRouter,
) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with running(engine) as url, cluster(start_router) as (router, found):
        await with_cloud(router, url)
        found.next.append(SATURATED)
        headers = {"x-iir-zone": "cluster"}
        answer = await router.client.post(CHAT, json=chat(), headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (429, "cluster_contended")
        assert engine.requests == []


async def test_full_and_cold_clusters_are_no_broken_ones(start_router: StartRouter) -> None:
    async with cluster(start_router, router_breaker_failures=2, router_probe_s=0.0) as (
        router,
        found,
    ):
        await deploy(router)
        found.next.extend([SATURATED, COLD, refusal(429, "x", "evicted")] * 3)
        for _ in range(9):
            assert (await router.client.post(CHAT, json=chat())).status_code in {429, 503}
        # a cluster that is alone is asked again at once: it may be another tenant's turn
        assert (await router.client.post(CHAT, json=chat())).status_code == 200
        assert len(router.router.fleet.breakers) == 0


async def test_a_cluster_without_its_picker_is_spared_with_all_its_models(
    start_router: StartRouter,
) -> None:
    settings = {"router_breaker_failures": 2, "router_probe_s": 0.0}
    async with cluster(start_router, **settings) as (router, found):
        for model in ("tiny", "other"):
            await deploy(router, model)
        found.next.extend([PICKER_GONE] * 2)
        for model in ("tiny", "tiny"):
            await router.client.post(CHAT, json=chat(model))
        answer = await router.client.post(CHAT, json=chat("other"))
        assert (answer.status_code, error_of(answer)["code"]) == (503, "circuit_open")
        await router.router.prober.look_at_spared()
        assert (await router.client.post(CHAT, json=chat())).status_code == 200


async def test_a_pod_that_is_gone_costs_one_more_attempt_in_the_same_cluster(
    start_router: StartRouter,
) -> None:
    async with cluster(start_router) as (router, found):
        found.next.append(POD_GONE)
        answer = await router.client.post(CHAT, json=chat())
        assert answer.status_code == 200
        assert answer.headers["x-iir-attempts"] == "2"
        assert answer.headers["x-iir-reason"] == "retry"
        found.next.extend([POD_GONE] * 5)
        answer = await router.client.post(CHAT, json=chat())
        assert (answer.status_code, error_of(answer)["code"]) == (503, "cluster_unavailable")
        assert POD_REFUSED not in answer.text
        assert answer.headers["x-iir-attempts"] == "2"
        assert len(found.requests) == 4, "two each: once more, and not again"


@pytest.mark.parametrize(
    ("answering", "attempts"),
    [
        (POD_GONE, 2),
        (refusal(503, f"{RESET}connection timeout"), 2),
        (refusal(503, "no healthy upstream"), 2),
        (POD_BROKE_OFF, 1),
        (refusal(502, f"{RESET}remote reset"), 1),
        (
            refusal(
                503, POD_REFUSED.replace("reset reason", "retried and the latest reset reason")
            ),
            1,
        ),
        (refusal(503, f"{RESET}overflow"), 1),
        (ROUTE_TIMEOUT, 1),
    ],
)
async def test_only_what_no_pod_has_seen_is_sent_to_the_cluster_again(
    start_router: StartRouter, answering: Answering, attempts: int
) -> None:
    async with cluster(start_router) as (router, found):
        found.next.extend([answering] * 3)
        answer = await router.client.post(CHAT, json=chat())
        assert answer.status_code >= 400
        assert len(found.requests) == attempts
        assert answer.headers["x-iir-attempts"] == str(attempts)


async def test_a_pod_that_broke_off_is_followed_by_another_endpoint_and_counts_against_the_model(
    start_router: StartRouter,
) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    settings = {"router_breaker_failures": 1, "router_probe_s": 0.0}
    async with running(engine) as url, cluster(start_router, **settings) as (router, found):
        await with_cloud(router, url)
        await deploy(router, "other")
        found.next.append(POD_BROKE_OFF)
        answer = await router.client.post(CHAT, json=chat())
        assert (answer.headers["x-iir-endpoint"], answer.headers["x-iir-attempts"]) == (
            "cloud",
            "2",
        )
        answer = await router.client.post(CHAT, json=chat())
        assert (answer.headers["x-iir-endpoint"], answer.headers["x-iir-attempts"]) == (
            "cloud",
            "1",
        )
        answer = await router.client.post(CHAT, json=chat("other"))
        assert answer.headers["x-iir-endpoint"] == "llmd"


async def test_what_takes_longer_than_the_route_allows_is_not_tried_elsewhere_nor_held_against_it(
    start_router: StartRouter,
) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    settings = {"router_breaker_failures": 1, "router_probe_s": 0.0}
    async with running(engine) as url, cluster(start_router, **settings) as (router, found):
        await with_cloud(router, url)
        found.next.extend([ROUTE_TIMEOUT] * 3)
        for _ in range(3):
            answer = await router.client.post(CHAT, json=chat())
            assert (answer.status_code, error_of(answer)["code"]) == (504, "upstream_timeout")
            assert answer.headers["x-should-retry"] == "false"
            assert "HTTPRoute" in error_of(answer)["message"]
        assert engine.requests == []
        answer = await router.client.post(CHAT, json=chat())
        assert answer.headers["x-iir-endpoint"] == "llmd"


async def test_one_pools_missing_picker_spares_the_models_of_that_pool_only(
    start_router: StartRouter,
) -> None:
    settings = {"router_breaker_failures": 2, "router_probe_s": 0.0}
    pools = {"llmd_model_header": "x-pool", **settings}
    async with cluster(start_router, "tiny", "other", **pools) as (router, found):
        for model in ("tiny", "other"):
            await deploy(router, model)
        found.next.extend([PICKER_GONE] * 2)
        for _ in range(2):
            answer = await router.client.post(CHAT, json=chat())
            assert (answer.status_code, error_of(answer)["code"]) == (503, "cluster_unavailable")
        answer = await router.client.post(CHAT, json=chat())
        assert (answer.status_code, error_of(answer)["code"]) == (503, "circuit_open")
        assert (await router.client.post(CHAT, json=chat("other"))).status_code == 200


async def test_a_cluster_that_lost_a_pod_goes_on_being_preferred(start_router: StartRouter) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with running(engine) as url, cluster(start_router) as (router, found):
        await with_cloud(router, url)
        found.next.extend([POD_GONE, POD_GONE])
        answer = await router.client.post(CHAT, json=chat())
        assert (answer.headers["x-iir-endpoint"], answer.headers["x-iir-attempts"]) == (
            "cloud",
            "3",
        )
        answer = await router.client.post(CHAT, json=chat())
        assert answer.headers["x-iir-endpoint"] == "llmd"


async def test_a_stream_that_is_cut_ends_with_an_error(start_router: StartRouter) -> None:
    async with cluster(start_router) as (router, found):
        found.pod.script.add("cut:after=2")
        answer = await router.client.post(CHAT, json=chat(stream=True))
        assert answer.status_code == 200
        assert error_event_of(answer.content)["code"] == "upstream_interrupted"
        assert b"[DONE]" not in answer.content


# ── time ─────────────────────────────────────────────────────────────────────────────────────


async def test_the_limits_leave_room_for_the_clusters_queue(start_router: StartRouter) -> None:
    limits = {"router_first_byte_timeout_s": 20.0, "router_total_timeout_s": 30.0}
    async with cluster(start_router, llmd_queue_ttl_s=90.0, **limits) as (router, _):
        [found] = router.router.fleet.resolve("tiny").candidates
        for timeouts in (found.deployment.timeouts, found.deployment.stream_timeouts):
            assert timeouts.first_byte_s == 110.0
            assert timeouts.total_s is None
        await deploy(router, "bounded", limits=TimeLimits(first_byte_s=7.0, total_s=9.0))
        [found] = router.router.fleet.resolve("bounded").candidates
        assert found.deployment.timeouts.first_byte_s == 7.0
        assert found.deployment.timeouts.total_s == 9.0


async def test_a_cluster_that_hangs_is_given_up(start_router: StartRouter) -> None:
    async with cluster(
        start_router, llmd_queue_ttl_s=0.1, router_first_byte_timeout_s=0.1, router_attempts=1
    ) as (router, found):
        found.next.append(hang)
        answer = await router.client.post(CHAT, json=chat())
        assert (answer.status_code, error_of(answer)["code"]) == (504, "upstream_timeout")
