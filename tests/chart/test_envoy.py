"""The proxy's configuration, by the real Envoy: a picker that obeys, simulated vLLMs behind it.

These are the cases that a router in front of llm-d has to live with; its own tests have them again.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.testing.engine import SimulatedEngine
from tests.chart.envoy_stack import MODEL, REFUSING, PickerProcess, Proxy, proxied, simulated_pods
from tests.chart.rendering import containers, envoy_program, named, pod_specs, render, rendered
from tests.integration.stack import machine_environment, missing

CHAT = "/v1/chat/completions"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello small world"}]}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with proxied(tmp_path_factory.mktemp("envoy")) as found:
        yield found


@dataclass(frozen=True, slots=True)
class Wire:
    """A client, the proxy it asks, and two pods behind it, which are picked in turn."""

    client: httpx.AsyncClient
    picker: PickerProcess
    pods: tuple[SimulatedEngine, ...]
    addresses: tuple[str, ...]


@pytest.fixture
async def wire(proxy: Proxy) -> AsyncIterator[Wire]:
    async with (
        simulated_pods(2) as pods,
        httpx.AsyncClient(base_url=proxy.url, timeout=20, trust_env=False) as client,
    ):
        proxy.picker.pick(pods.addresses)
        yield Wire(client, proxy.picker, pods.engines, pods.addresses)


@pytest.mark.parametrize(
    "proxy_values",
    [{}, {"listenAddress": "::"}, {"streamIdleTimeout": "1s", "connectTimeout": "60s"}],
)
def test_envoy_takes_the_configuration(proxy_values: dict[str, Any], tmp_path: Path) -> None:
    found = render({"router": {"proxy": proxy_values}})
    config = tmp_path / "envoy.yaml"
    config.write_text(named(found, "ConfigMap", "llm-d-envoy")["data"]["envoy.yaml"])
    command = [str(envoy_program()), "--mode", "validate", "--config-path", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "deprecated" not in done.stderr.lower()


async def test_requests_go_to_the_pods_that_are_picked(wire: Wire) -> None:
    for _ in range(4):
        answer = await wire.client.get("/v1/models")
        assert answer.json()["data"][0]["id"] == MODEL
    answer = await wire.client.post(CHAT, json=ASK)
    assert answer.json()["usage"]["total_tokens"] > 0
    counts = sorted(len(pod.requests) for pod in wire.pods)
    assert counts == [2, 3]


async def test_a_body_of_three_megabytes_arrives_whole(wire: Wire) -> None:
    words = "x" * 3_000_000
    ask = {**ASK, "messages": [{"role": "user", "content": words}], "max_tokens": 4}
    await wire.client.post(CHAT, json=ask)
    (seen,) = [one for pod in wire.pods for one in pod.requests]
    assert json.loads(json.dumps(seen.body))["messages"][0]["content"] == words


async def test_events_arrive_while_the_pod_still_writes(wire: Wire) -> None:
    for pod in wire.pods:
        pod.script.add("stall:after=2")
    async with wire.client.stream("POST", CHAT, json={**ASK, "stream": True}) as answer:
        lines = answer.aiter_lines()
        events = [line async for line in _until(lines, 2)]
        assert len(events) == 2
        assert answer.headers["content-type"].startswith("text/event-stream")


async def _until(lines: AsyncIterator[str], number: int) -> AsyncIterator[str]:
    """Yield so many events of a stream."""
    async for line in lines:
        if line.startswith("data: "):
            yield line
            number -= 1
            if number == 0:
                return


@pytest.mark.parametrize(
    ("status", "reason"),
    [(429, "rejected-saturated"), (503, "rejected-no-endpoints"), (429, "")],
)
async def test_a_refusal_is_plain_text_with_its_reason(
    wire: Wire, status: int, reason: str
) -> None:
    wire.picker.refuse(status, reason=reason, body="inference error: ResourceExhausted - full")
    answer = await wire.client.post(CHAT, json=ASK)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "text/plain"
    assert answer.headers.get("x-llm-d-request-dropped-reason", "") == reason
    assert answer.text == "inference error: ResourceExhausted - full"
    assert [pod.requests for pod in wire.pods] == [[], []]


async def test_without_pods_a_request_fails_and_none_is_guessed(wire: Wire) -> None:
    wire.picker.pick()
    answer = await wire.client.get("/v1/models")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "text/plain")
    assert "no pods available" in answer.text


async def test_without_a_picker_a_request_fails_with_an_empty_answer(wire: Wire) -> None:
    wire.picker.kill()
    try:
        answer = await wire.client.post(CHAT, json=ASK)
        assert (answer.status_code, answer.content) == (500, b"")
        assert "content-type" not in answer.headers
        assert [pod.requests for pod in wire.pods] == [[], []]
    finally:
        wire.picker.start()
    assert (await wire.client.post(CHAT, json=ASK)).status_code == 200


async def test_a_pod_that_refuses_is_503(wire: Wire) -> None:
    wire.picker.pick([REFUSING])
    answer = await wire.client.post(CHAT, json=ASK)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "text/plain")
    assert answer.text.startswith("upstream connect error")


@pytest.mark.parametrize("who", ["pod", "picker"])
async def test_a_stream_whose_pod_or_picker_dies_is_cut_and_does_not_end_well(
    wire: Wire, who: str
) -> None:
    for pod in wire.pods:
        pod.script.add("stall:after=2")
    received: list[str] = []
    try:
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            async with wire.client.stream("POST", CHAT, json={**ASK, "stream": True}) as answer:
                assert answer.status_code == 200
                async for line in answer.aiter_lines():
                    received.append(line)
                    if len(received) == 3:
                        _end(wire, who)
    finally:
        if who == "picker":
            wire.picker.start()
    assert sum(line.startswith("data: ") for line in received) == 2
    assert "data: [DONE]" not in received


def _end(wire: Wire, who: str) -> None:
    if who == "picker":
        wire.picker.kill()
    for pod in wire.pods:
        if who == "pod":
            pod.crashed.set()


async def test_a_client_that_leaves_frees_the_pod(wire: Wire) -> None:
    wire.picker.pick([wire.addresses[0]])
    pod = wire.pods[0]
    pod.script.add("stall:after=2")
    async with wire.client.stream("POST", CHAT, json={**ASK, "stream": True}) as answer:
        async for _ in _until(answer.aiter_lines(), 2):
            pass
    await pod.journal.wait_for(lambda: pod.requests[0].aborted)
    assert [seen.aborted for seen in pod.requests] == [True]
    assert pod.slots.running == 0


async def test_the_longest_silence_is_limited_also_while_the_picker_hangs(tmp_path: Path) -> None:
    with proxied(tmp_path, {"router": {"proxy": {"streamIdleTimeout": "1s"}}}) as short:
        short.picker.hang()
        async with httpx.AsyncClient(base_url=short.url, timeout=20, trust_env=False) as client:
            answer = await client.post(CHAT, json=ASK)
        assert answer.status_code == 504
        assert answer.text == "stream timeout"


async def test_a_client_cannot_say_where_its_request_goes(wire: Wire) -> None:
    wire.picker.pick([wire.addresses[0]])
    steering = {
        "x-gateway-destination-endpoint": wire.addresses[1],
        "x-prefiller-host-port": "10.0.0.1:22",
        "x-encoder-hosts-ports": "10.0.0.1:22",
        "x-data-parallel-host-port": "10.0.0.1:22",
    }
    answer = await wire.client.post(CHAT, json=ASK, headers=steering)
    assert answer.status_code == 200
    assert wire.pods[1].requests == []
    (seen,) = wire.pods[0].requests
    (asked,) = [one for one in wire.picker.seen() if one.get("x-request-id") == _id(seen.headers)]
    for name in steering:
        assert name not in asked
    assert dict(seen.headers)["x-gateway-destination-endpoint"] == wire.addresses[0]
    assert not {name for name, _ in seen.headers} & (set(steering) - {*list(steering)[:1]})


def _id(headers: tuple[tuple[str, str], ...]) -> str:
    return dict(headers)["x-request-id"]


async def test_llm_ds_headers_and_the_request_id_get_to_picker_and_pod(wire: Wire) -> None:
    sent = {
        "x-request-id": "an-id-of-ours",
        "x-llm-d-inference-objective": "premium",
        "x-llm-d-inference-fairness-id": "tenant-1",
        "authorization": "Bearer of-vllm",
    }
    await wire.client.post(CHAT, json=ASK, headers=sent)
    (seen,) = [one for pod in wire.pods for one in pod.requests]
    for headers in (wire.picker.seen()[-1], dict(seen.headers)):
        assert sent.items() <= headers.items()


async def test_a_header_with_an_underscore_is_dropped(wire: Wire) -> None:
    sent = {"x_prefiller_host_port": "10.0.0.1:22"}
    assert (await wire.client.post(CHAT, json=ASK, headers=sent)).status_code == 200
    (seen,) = [one for pod in wire.pods for one in pod.requests]
    assert not [name for name, _ in seen.headers if "_" in name]


def test_kubelet_and_prometheus_get_their_answers(proxy: Proxy) -> None:
    with httpx.Client(base_url=proxy.health_url, trust_env=False) as client:
        assert client.get("/ready").status_code == 200
        assert "envoy_cluster_upstream_rq" in client.get("/stats/prometheus").text
        assert client.get("/quitquitquit").status_code == 404


def test_what_failed_is_logged_without_prompts_and_keys(tmp_path: Path) -> None:
    with proxied(tmp_path) as own, httpx.Client(base_url=own.url, trust_env=False) as client:
        own.picker.pick([REFUSING])
        headers = {"authorization": "Bearer secret-key", "x-request-id": "of-the-failed"}
        assert client.post(f"{CHAT}?key=secret-query", json=ASK, headers=headers).is_error
    (line,) = [one for one in own.log.read_text().splitlines() if "of-the-failed" in one]
    logged = json.loads(line)
    assert (logged["status"], logged["path"], logged["pod"]) == (503, CHAT, REFUSING)
    for secret in ("secret-key", "secret-query", "hello small world"):
        assert secret not in own.log.read_text()


async def test_helm_test_passes_through_the_proxy(proxy: Proxy, wire: Wire) -> None:
    if shutil.which("curl") is None:
        missing("curl")
    (container,) = containers(dict(pod_specs(rendered("sim")))["llm-d-smoke"])
    values = {one["name"]: one["value"] for one in container["env"]}
    assert values["BASE"] == "http://llm-d.llm-d:8000"
    smoke = await asyncio.create_subprocess_exec(
        *container["command"],
        *container["args"],
        env=machine_environment(**{**values, "BASE": proxy.url, "no_proxy": "*"}),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await smoke.communicate()
    assert smoke.returncode == 0
    assert b'"chat.completion"' in said
    wire.picker.refuse(429)
    again = await asyncio.create_subprocess_exec(
        *container["command"],
        *container["args"],
        env=machine_environment(**{**values, "BASE": proxy.url, "no_proxy": "*"}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await again.communicate()
    assert again.returncode != 0
