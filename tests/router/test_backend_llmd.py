"""An llm-d cluster as endpoint: what goes there, what comes back, what never does."""

from __future__ import annotations

import hashlib
import json
from functools import partial

import pytest

from router.domain import Provider, Slo, Zone
from router.store.catalog import add_provider, list_providers
from router.store.deployed import set_cluster_fields
from tests.router.gateway import (
    SATURATED,
    cluster,
    deploy,
    gateway,
    refusal,
)
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, MESSAGES, bearer, chat, error_of, key, usage_of

HIDDEN = ("x-llm-d-request-dropped-reason", "x-gateway-destination-endpoint", "x-inference-pod")


# ── off, and on ──────────────────────────────────────────────────────────────────────────────


async def test_without_the_setting_nothing_is_there(start_router: StartRouter) -> None:
    async with start_router() as router:
        assert "llmd" not in [each.name for each in router.write(list_providers)]
        assert "clusters" not in (await router.client.get("/readyz")).json()
        answer = await router.client.post(CHAT, json=chat("llmd-tiny"))
        assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")


async def test_what_the_cluster_serves_can_be_asked_for_at_once(start_router: StartRouter) -> None:
    async with cluster(start_router, "org/tiny", "other") as (router, found):
        listed = (await router.client.get("/v1/models")).json()["data"]
        shown = {model["id"]: model for model in listed if model["owned_by"] == "llmd"}
        assert set(shown) == {"org/tiny", "other"}
        assert shown["other"]["context_length"] == 8192
        assert (await router.client.get("/readyz")).json()["clusters"] == {"llmd": "ready"}
        answer = await router.client.post(CHAT, json=chat("org/tiny"))
        assert answer.status_code == 200
        assert answer.headers["x-iir-endpoint"] == "llmd"
        assert answer.headers["x-iir-zone"] == "cluster"
        assert json.loads(found.requests[0].body)["model"] == "org/tiny"
        [row] = await usage_of(router)
        assert (row["endpoint"], row["zone"], row["model"]) == ("llmd", "cluster", "org/tiny")


async def test_a_setting_that_is_taken_back_leaves_a_row_that_says_so(
    start_router: StartRouter,
) -> None:
    async with cluster(start_router) as (router, _):
        await deploy(router, "pinned")
    async with start_router() as router:
        answer = await router.client.post(CHAT, json=chat("pinned"))
        assert (answer.status_code, error_of(answer)["code"]) == (503, "provider_not_configured")
        assert "LLMD_ENDPOINT" in answer.text


async def test_the_registry_may_have_further_clusters(start_router: StartRouter) -> None:
    async with (
        gateway("second-only") as (second, url),
        cluster(start_router, "first-only") as (router, _),
    ):
        row = Provider(name="spare", dialect="llmd", base_url=url, zone=Zone.CLUSTER)
        router.write(lambda c: add_provider(c, row))
        await router.catch_up()
        await router.router.prober.look_at_spared()
        answer = await router.client.post(CHAT, json=chat("second-only"))
        assert answer.headers["x-iir-endpoint"] == "spare"
        assert len(second.requests) == 1


async def test_a_model_on_two_clusters_fails_over(start_router: StartRouter) -> None:
    async with gateway() as (second, url), cluster(start_router) as (router, first):
        row = Provider(name="spare", dialect="llmd", base_url=url, zone=Zone.CLUSTER)
        router.write(lambda c: add_provider(c, row))
        await router.catch_up()
        await router.router.prober.look_at_spared()
        first.next.extend([SATURATED] * 8)
        second_first = [
            (await router.client.post(CHAT, json=chat())).headers["x-iir-endpoint"]
            for _ in range(8)
        ]
        assert second_first == ["spare"] * 8
        assert len(second.requests) == 8


# ── headers ──────────────────────────────────────────────────────────────────────────────────


async def test_no_header_of_the_clusters_own_comes_from_a_client(start_router: StartRouter) -> None:
    forged = {
        "x-llm-d-inference-objective": "mine",
        "x-llm-d-inference-fairness-id": "mine",
        "x-gateway-inference-objective": "mine",
        "x-gateway-destination-endpoint": "169.254.169.254:80",
        "x-gateway-base-model-name": "mine",
        "x-slo-ttft-ms": "1",
        "x-prefiller-host-port": "evil.example:80",
        "x-encoder-hosts-ports": "evil.example:80",
        "x-data-parallel-host-port": "evil.example:80",
        "prefer": "if-available",
        "x_internal": "mine",
        "x-iir-priority": "high",
        "cookie": "mine",
        "authorization": "Bearer sk-mine",
    }
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    passed = {"traceparent": trace, "x-request-id": "my-request"}
    async with cluster(start_router) as (router, found):
        answer = await router.client.post(CHAT, json=chat(), headers={**forged, **passed})
        assert answer.status_code == 200
        sent = dict(found.requests[0].headers)
        assert sent["traceparent"] == trace
        assert sent["x-request-id"] == "my-request"
        assert not set(forged) & set(sent)
        assert "mine" not in str(sent)


async def test_no_trace_is_begun_for_a_client_that_has_none(start_router: StartRouter) -> None:
    async with cluster(start_router) as (router, found):
        answer = await router.client.post(CHAT, json=chat())
        assert found.requests[0].header("traceparent") is None
        assert found.requests[0].header("x-request-id") == answer.headers["x-request-id"]


async def test_no_header_of_the_clusters_own_reaches_a_client(start_router: StartRouter) -> None:
    inner = dict.fromkeys(HIDDEN[1:], "10.0.0.7:8000")
    whole = '{"id":"a","object":"chat.completion","choices":[]}'
    async with cluster(start_router, router_attempts=1) as (router, found):
        for status in (200, 400, 429, 503):
            body = whole if status == 200 else "no"
            found.next.append(refusal(status, body, "rejected-internal", **inner))
            answer = await router.client.post(CHAT, json=chat())
            assert answer.status_code == status
            assert not [name for name in HIDDEN if name in answer.headers]
            assert "10.0.0.7" not in str(answer.headers) + answer.text


async def test_the_objective_is_the_registrys_and_the_tenant_a_hash_of_the_key(
    start_router: StartRouter,
) -> None:
    async with cluster(start_router) as (router, found):
        first, second = router.write(key()), router.write(key())
        await deploy(router, objective="premium")
        for secret in (first, second, first):
            answer = await router.client.post(CHAT, json=chat(), headers=bearer(secret))
            assert answer.status_code == 200
        objectives = {each.header("x-llm-d-inference-objective") for each in found.requests}
        assert objectives == {"premium"}
        tenants = [each.header("x-llm-d-inference-fairness-id") for each in found.requests]
        assert tenants[0] == tenants[2] != tenants[1]
        for secret, tenant in zip((first, second), tenants, strict=False):
            assert tenant is not None
            assert len(tenant) == 16
            assert tenant not in hashlib.sha256(secret.encode()).hexdigest()
            assert secret not in str(found.requests[0].headers)
        change: dict[str, str | None] = {"objective": None}
        router.write(lambda c: set_cluster_fields(c, "tiny", "llmd", change))
        await router.catch_up()
        await router.client.post(CHAT, json=chat(), headers=bearer(first))
        assert found.requests[-1].header("x-llm-d-inference-objective") is None


CURRENT = {
    "x-llm-d-inference-objective": "premium",
    "x-llm-d-slo-ttft-ms": "500",
    "x-llm-d-slo-tpot-ms": "40",
}
LEGACY = {
    "x-gateway-inference-objective": "premium",
    "x-slo-ttft-ms": "500",
    "x-slo-tpot-ms": "40",
}


@pytest.mark.parametrize(
    ("style", "names"),
    [("current", CURRENT), ("legacy", LEGACY), ("both", {**CURRENT, **LEGACY})],
)
async def test_headers_have_the_names_that_the_clusters_version_knows(
    start_router: StartRouter, style: str, names: dict[str, str]
) -> None:
    async with cluster(start_router, llmd_headers=style) as (router, found):
        secret = router.write(key())
        await deploy(router, objective="premium", slo=Slo(ttft_ms=500, tpot_ms=40))
        forged = {"x-gateway-inference-objective": "forged", "x-slo-tpot-ms": "1"}
        headers = {**bearer(secret), **forged}
        assert (await router.client.post(CHAT, json=chat(), headers=headers)).status_code == 200
        sent = {
            name: value
            for name, value in found.requests[0].headers
            if name.startswith(("x-llm-d-", "x-gateway-", "x-slo-"))
        }
        tenants = {name: value for name, value in sent.items() if "fairness-id" in name}
        assert {name: value for name, value in sent.items() if name not in tenants} == names
        assert len(tenants) == len(names) // 3
        assert len(set(tenants.values())) == 1


async def test_a_model_without_slos_sends_none(start_router: StartRouter) -> None:
    async with cluster(start_router) as (router, found):
        await deploy(router, slo=Slo(ttft_ms=500))
        await router.client.post(CHAT, json=chat())
        change: dict[str, str | int | None] = {"slo_ttft_ms": None}
        router.write(lambda c: set_cluster_fields(c, "tiny", "llmd", change))
        await router.catch_up()
        await router.client.post(CHAT, json=chat())
        first, second = (
            [(name, value) for name, value in each.headers if "-slo-" in name]
            for each in found.requests
        )
        assert first == [("x-llm-d-slo-ttft-ms", "500")]
        assert second == []


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_cluster_had_cached_is_a_metric(
    start_router: StartRouter, stream: bool
) -> None:
    usage = {
        "prompt_tokens": 40,
        "completion_tokens": 2,
        "total_tokens": 42,
        "prompt_tokens_details": {"cached_tokens": 32},
    }
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a"}}
    whole = {"id": "a", "object": "chat.completion", "choices": [choice], "usage": usage}
    delta = {"index": 0, "finish_reason": "stop", "delta": {"content": "a"}}
    chunk = {"id": "a", "object": "chat.completion.chunk", "choices": [delta]}
    events = [chunk, {**chunk, "choices": [], "usage": usage}]
    sse = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    async with cluster(start_router) as (router, found):
        found.next.append(
            refusal(200, sse, **{"content-type": "text/event-stream"})
            if stream
            else refusal(200, json.dumps(whole))
        )
        answer = await router.client.post(CHAT, json=chat(stream=stream))
        assert answer.status_code == 200
        shown = (await router.client.get("/metrics")).text
        line = 'iir_cached_input_tokens_total{endpoint="llmd",operation="chat/completions"} 32.0'
        assert line in shown
        assert 'gen_ai_client_token_usage_total{endpoint="llmd",type="input"} 40.0' in shown


async def test_the_tenant_of_a_key_is_the_same_after_a_restart(start_router: StartRouter) -> None:
    tenants = []
    async with gateway() as (found, url):
        async with start_router(llmd_endpoint=url) as router:
            secret = router.write(key())
        for _ in range(2):
            async with start_router(llmd_endpoint=url) as router:
                await router.client.post(CHAT, json=chat(), headers=bearer(secret))
                tenants.append(found.requests[-1].header("x-llm-d-inference-fairness-id"))
    assert tenants[0] is not None
    assert tenants[0] == tenants[1]


async def test_programs_without_a_key_share_llmds_default_flow(start_router: StartRouter) -> None:
    async with cluster(start_router) as (router, found):
        await router.client.post(CHAT, json=chat())
        assert found.requests[0].header("x-llm-d-inference-fairness-id") is None


async def test_several_pools_are_told_the_model_by_a_header(start_router: StartRouter) -> None:
    async with cluster(start_router, llmd_model_header="X-Gateway-Base-Model-Name") as (
        router,
        found,
    ):
        await deploy(router, "my-adapter", base_model="org/base")
        for model in ("tiny", "my-adapter"):
            await router.client.post(CHAT, json=chat(model))
        sent = [each.header("x-gateway-base-model-name") for each in found.requests]
        assert sent == ["tiny", "org/base"]


async def test_an_adapter_goes_by_the_model_that_it_was_made_for(start_router: StartRouter) -> None:
    cards = [{"id": "base"}, {"id": "tuned", "parent": "base", "root": "/adapters/tuned"}]
    body = json.dumps({"object": "list", "data": cards})
    async with cluster(start_router, llmd_model_header="x-pool") as (router, found):
        found.listing = refusal(200, body)
        await router.router.prober.look()
        await router.client.post(CHAT, json=chat("tuned"))
        assert found.requests[0].header("x-pool") == "base"
        assert json.loads(found.requests[0].body)["model"] == "tuned"


async def test_what_the_settings_say_of_a_cluster_goes_to_no_other(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMD_API_KEY", "vllm-key")
    async with gateway("theirs") as (other, other_url), gateway() as (found, url):
        found.metrics = other.metrics = b"llm_d_epp_average_queue_size 7\n"
        async with start_router(llmd_endpoint=url, llmd_metrics_url=url) as router:
            row = Provider(name="other", dialect="llmd", base_url=other_url, zone=Zone.CLUSTER)
            router.write(lambda c: add_provider(c, row))
            await router.catch_up()
            await router.router.prober.look()
            for model in ("theirs", "tiny"):
                assert (await router.client.post(CHAT, json=chat(model))).status_code == 200
            clusters = router.router.fleet.clusters
            queues = {name: clusters.queued(name) for name, _ in clusters}
        assert [each.header("authorization") for each in other.seen] == [None] * 2
        assert {each.header("authorization") for each in found.seen} == {"Bearer vllm-key"}
        assert queues == {"llmd": 7, "other": 0}


async def test_settings_of_a_cluster_that_has_no_address_go_to_none_of_its_name(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMD_API_KEY", "vllm-key")
    async with gateway() as (found, url):
        found.metrics = b"llm_d_epp_average_queue_size 7\n"
        row = Provider(name="llmd", dialect="llmd", base_url=url, zone=Zone.CLUSTER)
        async with start_router(llmd_metrics_url=url) as router:
            router.write(lambda c: add_provider(c, row))
            await router.catch_up()
            await router.router.prober.look()
            assert (await router.client.post(CHAT, json=chat())).status_code == 200
            [(name, _)] = router.router.fleet.clusters
            assert router.router.fleet.clusters.queued(name) == 0
        assert [each.header("authorization") for each in found.seen] == [None] * 2


async def test_a_further_cluster_speaks_every_api_unless_its_row_says_otherwise(
    start_router: StartRouter,
) -> None:
    async with gateway() as (_, url), gateway("plain") as (_, plain_url), start_router() as router:
        for name, base_url, apis in (("all", url, None), ("some", plain_url, ("chat",))):
            row = Provider(
                name=name, dialect="llmd", base_url=base_url, zone=Zone.CLUSTER, apis=apis
            )
            router.write(partial(add_provider, provider=row))
        await router.catch_up()
        await router.router.prober.look()
        bodies: dict[str, dict[str, object]] = {
            "/v1/responses": {"input": "Hi"},
            "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
        }
        for route, body in bodies.items():
            for model, status in (("tiny", 200), ("plain", 404)):
                answer = await router.client.post(route, json={"model": model, **body})
                assert answer.status_code == status, (route, model)


async def test_a_credential_of_the_cluster(
    start_router: StartRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMD_API_KEY", "vllm-key")
    async with cluster(start_router) as (router, found):
        await router.client.post(CHAT, json=chat(), headers={"authorization": "Bearer mine"})
        assert found.requests[0].header("authorization") == "Bearer vllm-key"
        found.next.append(refusal(401, '{"error":"Unauthorized"}'))
        answer = await router.client.post(CHAT, json=chat())
        assert (answer.status_code, error_of(answer)["code"]) == (
            502,
            "upstream_credential_refused",
        )
