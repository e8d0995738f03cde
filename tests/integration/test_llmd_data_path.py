"""Router → real Envoy with the chart's configuration → endpoint picker → simulated vLLMs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from router.domain import DeploymentEntry, Provider, Scope, Zone
from router.store.catalog import add_model, add_provider
from router.store.keys import create_key
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.chart.envoy_stack import MODEL, REFUSING, EnvoyStack, envoy_stack
from tests.router.harness import RunningRouter, starter
from tests.router.scenes import CHAT, MESSAGES, bearer, error_event_of, error_of, usage_of

pytestmark = pytest.mark.integration
# Nobody may wait for ever; each is far above what it bounds.
_SOON_S = 30
_QUIET = {"router_probe_s": 3600.0}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": MESSAGES, **fields}


@dataclass(slots=True)
class Way:
    """The whole way of a request."""

    router: RunningRouter
    stack: EnvoyStack

    async def ask(self, **fields: Any) -> httpx.Response:
        with anyio.fail_after(_SOON_S):
            return await self.router.client.post(CHAT, json=chat(**fields), timeout=_SOON_S)

    @property
    def seen(self) -> list[Any]:
        """Return the chats that any pod saw."""
        return [each for pod in self.stack.pods for each in pod.requests if each.body]

    async def look(self) -> None:
        await self.router.router.prober.look()

    async def with_cloud(self, url: str) -> None:
        """Give the model a second endpoint, for when the cluster does not take a request."""
        cloud = Provider(name="cloud", dialect="openai", base_url=url, zone=Zone.CLOUD)
        rows = {"llmd": 10, "cloud": 20}
        self.router.write(lambda c: add_provider(c, cloud))
        for provider, priority in rows.items():
            row = DeploymentEntry(provider=provider, upstream_name=MODEL, priority=priority)
            self.router.write(partial(add_model, name=MODEL, deployment=row))
        await self.router.catch_up()


@asynccontextmanager
async def whole_way(
    folder: Path, *, options: EngineOptions | None = None, **settings: Any
) -> AsyncIterator[Way]:
    """Run all of it; the router looks at the cluster once, at its start."""
    async with (
        envoy_stack(folder, options=options) as stack,
        starter(folder / "router-home")(
            llmd_endpoint=f"{stack.url}/v1/", **{**_QUIET, **settings}
        ) as router,
    ):
        yield Way(router, stack)


# ── what works ───────────────────────────────────────────────────────────────────────────────


async def test_its_models_are_listed_and_looks_go_to_all_pods(tmp_path: Path) -> None:
    async with whole_way(tmp_path) as way:
        await way.look()
        listed = (await way.router.client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed if model["owned_by"] == "llmd"] == [MODEL]
        assert [len(pod.requests) for pod in way.stack.pods] == [1, 1]
        assert (await way.router.client.get("/readyz")).json()["clusters"] == {"llmd": "ready"}


async def test_a_long_body_arrives_whole(tmp_path: Path) -> None:
    text = "word " * 600_000  # 3 MB
    messages = [{"role": "user", "content": text}]
    options = EngineOptions(models=(MODEL,), context_tokens=10**7)
    async with whole_way(tmp_path, options=options) as way:
        answer = await way.ask(messages=messages)
        assert answer.status_code == 200, answer.text
        [seen] = way.seen
        assert seen.body["messages"] == messages


async def test_a_stream_is_not_buffered(tmp_path: Path) -> None:
    async with whole_way(tmp_path) as way:
        for pod in way.stack.pods:
            pod.script.add("stall:after=3")
        body = chat(stream=True)
        with anyio.fail_after(_SOON_S):
            async with way.router.client.stream("POST", CHAT, json=body) as answer:
                received = b""
                async for chunk in answer.aiter_bytes():
                    received += chunk
                    if received.count(b"data: ") >= 3:
                        break  # the pod sends nothing more, and the stream is open still
        assert answer.headers["x-iir-endpoint"] == "llmd"


async def test_whole_streams_embeddings_and_the_other_apis(tmp_path: Path) -> None:
    async with whole_way(tmp_path) as way:
        answer = await way.ask(stream=True)
        assert answer.content.endswith(b"data: [DONE]\n\n")
        client = way.router.client
        for route, body in {
            "/v1/embeddings": {"model": MODEL, "input": "Hi"},
            "/v1/completions": {"model": MODEL, "prompt": "Hi"},
            "/v1/responses": {"model": MODEL, "input": "Hi"},
            "/v1/messages": {"model": MODEL, "messages": MESSAGES, "max_tokens": 4},
        }.items():
            assert (await client.post(route, json=body)).status_code == 200, route
        rows = await usage_of(way.router)
        assert [row["zone"] for row in rows] == ["cluster"] * 5
        assert rows[0]["output_tokens"] > 0


async def test_the_picker_hears_what_it_decides_by_and_nothing_that_a_client_forged(
    tmp_path: Path,
) -> None:
    async with whole_way(tmp_path) as way:
        secret = way.router.write(lambda c: create_key(c, "test", {Scope.INFERENCE}))
        row = DeploymentEntry(provider="llmd", upstream_name=MODEL, objective="premium")
        way.router.write(lambda c: add_model(c, MODEL, row))
        await way.router.catch_up()
        forged = {
            "x-llm-d-inference-objective": "forged",
            "x-llm-d-inference-fairness-id": "forged",
            "x-gateway-destination-endpoint": REFUSING,
            "x-prefiller-host-port": REFUSING,
        }
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        headers = {**forged, **bearer(secret), "x-request-id": "mine", "traceparent": trace}
        answer = await way.router.client.post(CHAT, json=chat(), headers=headers)
        assert answer.status_code == 200
        heard = way.stack.picker.seen()[-1]
        assert heard["x-llm-d-inference-objective"] == "premium"
        assert len(heard["x-llm-d-inference-fairness-id"]) == 16
        assert heard["x-request-id"] == "mine"
        assert heard["traceparent"].startswith(trace[:35])
        assert "x-prefiller-host-port" not in heard
        assert "forged" not in str(heard) + str(way.seen[0].headers)
        assert secret not in str(heard)
        assert not [name for name in answer.headers if name.startswith(("x-llm-d", "x-gateway"))]


# ── what fails ───────────────────────────────────────────────────────────────────────────────


async def test_a_picker_that_refuses_is_429_and_spills_over(tmp_path: Path) -> None:
    engine = SimulatedEngine(EngineOptions(models=(MODEL,)))
    async with running(engine) as url, whole_way(tmp_path) as way:
        way.stack.picker.refuse(429, reason="rejected-saturated")
        answer = await way.ask()
        assert (answer.status_code, error_of(answer)["code"]) == (429, "cluster_contended")
        assert int(answer.headers["retry-after"]) <= 3
        assert "x-llm-d-request-dropped-reason" not in answer.headers
        await way.with_cloud(url)
        way.router.router.fleet.rests.forget("llmd")
        answer = await way.ask(stream=True)
        assert answer.headers["x-iir-endpoint"] == "cloud"
        assert answer.content.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("how", ["rejected-no-endpoints", "no pods"])
async def test_a_cluster_without_pods_is_cold_and_not_broken(tmp_path: Path, how: str) -> None:
    async with whole_way(tmp_path, router_breaker_failures=1) as way:
        if how == "no pods":
            way.stack.picker.pick()
        else:
            way.stack.picker.refuse(503, reason=how)
        for _ in range(3):
            answer = await way.ask()
            assert (answer.status_code, error_of(answer)["code"]) == (503, "cluster_cold")
        await way.look()
        assert (await way.router.client.get("/readyz")).json()["clusters"] == {"llmd": "cold"}
        listed = (await way.router.client.get("/v1/models")).json()["data"]
        assert MODEL in [model["id"] for model in listed], "its models are not forgotten"
        way.stack.picker.pick(way.stack.addresses)
        assert (await way.ask()).status_code == 200


async def test_without_its_picker_the_cluster_is_unavailable_until_that_is_back(
    tmp_path: Path,
) -> None:
    async with whole_way(tmp_path, router_breaker_failures=2) as way:
        way.stack.picker.kill()
        for _ in range(2):
            answer = await way.ask()
            assert (answer.status_code, error_of(answer)["code"]) == (503, "cluster_unavailable")
        assert error_of(await way.ask())["code"] == "circuit_open"
        await way.look()
        readiness = (await way.router.client.get("/readyz")).json()
        assert readiness["clusters"] == {"llmd": "unreachable"}
        way.stack.picker.start()
        with anyio.fail_after(_SOON_S):
            while way.router.router.fleet.breakers.is_spared("llmd"):
                await way.router.router.prober.look_at_spared()
        assert (await way.ask()).status_code == 200


async def test_a_picker_that_hangs_is_given_up_after_the_limit(tmp_path: Path) -> None:
    limits: dict[str, Any] = {"router_first_byte_timeout_s": 0.3, "llmd_queue_ttl_s": 0.2}
    async with whole_way(tmp_path, **limits) as way:
        way.stack.picker.hang()
        answer = await way.ask()
        assert (answer.status_code, error_of(answer)["code"]) == (504, "upstream_timeout")
        assert way.seen == []


async def test_a_pod_that_refuses_costs_an_attempt_and_no_request(tmp_path: Path) -> None:
    async with whole_way(tmp_path) as way:
        way.stack.picker.pick([REFUSING, way.stack.addresses[0]])
        answers = [await way.ask() for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200] * 3
        # every other pick leads nowhere, the first one here does not: the router's look had that
        assert [answer.headers["x-iir-attempts"] for answer in answers] == ["1", "2", "2"]
        way.stack.picker.pick([REFUSING])
        answer = await way.ask()
        assert (answer.status_code, error_of(answer)["code"]) == (503, "cluster_unavailable")
        assert "connect error" not in answer.text


@pytest.mark.parametrize("who", ["pod", "picker"])
async def test_a_stream_that_loses_pod_or_picker_ends_with_an_error(
    tmp_path: Path, who: str
) -> None:
    pod = SimulatedEngine(EngineOptions(models=(MODEL,)))
    pod.script.add("stall:after=3")
    async with whole_way(tmp_path) as way, AsyncExitStack() as life_of_pod:
        url = await life_of_pod.enter_async_context(running(pod))
        way.stack.picker.pick([url.removeprefix("http://")])
        received, is_lost = b"", False
        with anyio.fail_after(_SOON_S):
            async with way.router.client.stream("POST", CHAT, json=chat(stream=True)) as answer:
                async for chunk in answer.aiter_bytes():
                    received += chunk
                    if not is_lost and received.count(b"data: ") >= 3:
                        is_lost = True
                        if who == "picker":
                            way.stack.picker.kill()
                        else:
                            await life_of_pod.aclose()
        assert answer.status_code == 200
        assert error_event_of(received)["code"] == "upstream_interrupted"
        assert b"[DONE]" not in received
        [row] = await usage_of(way.router)
        assert row["error"] == "upstream_interrupted"


async def test_a_pod_that_dies_before_its_answer_is_not_followed_by_another_in_the_cluster(
    tmp_path: Path,
) -> None:
    engine = SimulatedEngine(EngineOptions(models=(MODEL,)))
    async with running(engine) as url, whole_way(tmp_path) as way:
        for pod in way.stack.pods:
            pod.script.add("cut")
        answer = await way.ask()
        assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_interrupted")
        assert answer.headers["x-iir-attempts"] == "1"
        assert len(way.seen) == 1, "it may have worked on it"
        await way.with_cloud(url)
        answer = await way.ask()
        assert answer.status_code == 200
        assert answer.headers["x-iir-endpoint"] == "cloud"
        assert len(way.seen) == 2


async def test_looks_that_go_to_a_dead_pod_blame_no_cluster(tmp_path: Path) -> None:
    async with whole_way(tmp_path, router_breaker_failures=1) as way:
        way.stack.picker.pick([REFUSING, way.stack.addresses[0]])
        for _ in range(4):
            await way.look()
            assert not way.router.router.fleet.breakers.is_spared("llmd")
        assert (await way.router.client.get("/readyz")).json()["clusters"] == {"llmd": "ready"}
        assert (await way.ask()).status_code == 200


async def test_a_client_that_leaves_stops_the_pod(tmp_path: Path) -> None:
    async with whole_way(tmp_path) as way:
        for pod in way.stack.pods:
            pod.script.add("stall:after=2")
        body = json.dumps(chat(stream=True))
        headers = {"content-type": "application/json"}
        async with way.router.client.stream("POST", CHAT, content=body, headers=headers) as answer:
            async for _ in answer.aiter_bytes():
                break
        with anyio.fail_after(_SOON_S):
            while not any(seen.aborted for seen in way.seen):
                await anyio.sleep(0.01)
        chats = [seen for seen in way.seen if seen.method == "POST"]
        assert len(chats) == 1, "asked again for a client that is gone"
        assert sum(pod.slots.running for pod in way.stack.pods) == 0
