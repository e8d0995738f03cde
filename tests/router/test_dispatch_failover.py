"""Failover: before the first byte the next candidate is tried, afterwards never."""

from __future__ import annotations

import json
import socket

import pytest

from router.domain import DeploymentEntry, Provider, Zone
from router.store.catalog import add_model, add_provider
from tests.router.harness import StartRouter
from tests.router.scenes import (
    CHAT,
    chat,
    error_event_of,
    error_of,
    one_engine,
    two_engines,
    usage_of,
)

WORTH_ANOTHER_TRY = [
    *(f"status:code={code}" for code in (408, 409, 425, 429, 500, 501, 502, 503, 504, 507, 529)),
    *(f"status:code={code}" for code in (401, 402, 403, 407)),
    *(
        "html_502",
        "redirect",
        "empty_200",
        "error_200",
        "garbage",
        "stall",
    ),
]
OF_STREAMS = ["error_event", "error_event:shape=vllm_old", "cut:after=0", "json_200", "bad_chunk"]


async def test_what_fails_before_the_first_byte_is_tried_elsewhere(
    start_router: StartRouter,
) -> None:
    settings = {"router_first_byte_timeout_s": 0.15, "router_retry_share": 1}
    async with two_engines(start_router, **settings) as scene:
        cases = [(fault, s) for fault in WORTH_ANOTHER_TRY for s in (True, False)]
        cases += [(fault, True) for fault in OF_STREAMS]
        for fault, stream in cases:
            scene.first.script.add(fault)
            scene.router.router.fleet.rests.forget("first")
            answer = await scene.client.post(CHAT, json=chat(stream=stream))
            assert answer.status_code == 200, fault
            assert answer.headers["x-iir-endpoint"] == "second", fault
            assert answer.headers["x-iir-attempts"] == "2"
            assert answer.headers["x-iir-reason"] == "failover"
        assert len(scene.first.requests) == len(scene.second.requests) == len(cases)


@pytest.mark.parametrize("fault", ["cut", "cut:reset=true"])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_endpoint_that_hangs_up_is_left_for_another(
    start_router: StartRouter, fault: str, stream: bool
) -> None:
    async with two_engines(start_router) as scene:
        scene.first.script.add(fault)
        answer = await scene.client.post(CHAT, json=chat(stream=stream))
        assert answer.status_code == 200
        assert answer.headers["x-iir-endpoint"] == "second"
        assert answer.headers["x-iir-reason"] == "failover"


@pytest.mark.parametrize("fault", ["cut", "cut:reset=true"])
async def test_a_kept_connection_that_closes_costs_an_attempt_that_is_seen(
    start_router: StartRouter, fault: str
) -> None:
    async with two_engines(start_router) as scene:
        await scene.client.post(CHAT, json=chat())
        scene.first.script.add(fault)
        answer = await scene.client.post(CHAT, json=chat())
        assert answer.status_code == 200
        assert answer.headers["x-iir-endpoint"] == "first"
        assert answer.headers["x-iir-reason"] == "retry"
        assert answer.headers["x-iir-attempts"] == "2"
        rows = [
            (row["endpoint"], row["attempt"], row["error"]) for row in await usage_of(scene.router)
        ]
        stale = ("first", 1, "upstream_interrupted")
        assert rows == [("first", 1, None), stale, ("first", 2, None)]


async def test_a_stale_connection_costs_nobody_the_second_endpoint(
    start_router: StartRouter,
) -> None:
    async with two_engines(start_router) as scene:
        await scene.client.post(CHAT, json=chat())
        scene.first.script.add("cut", "status:code=500")  # and then it turns out to be broken
        answer = await scene.client.post(CHAT, json=chat())
        assert (answer.status_code, answer.headers["x-iir-endpoint"]) == (200, "second")
        assert answer.headers["x-iir-attempts"] == "3"
        assert len(await usage_of(scene.router)) == 4


async def test_who_allows_one_attempt_gets_one_even_on_a_stale_connection(
    start_router: StartRouter,
) -> None:
    async with two_engines(start_router, router_attempts=1) as scene:
        await scene.client.post(CHAT, json=chat())
        scene.first.script.add("cut")
        answer = await scene.client.post(CHAT, json=chat())
        assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_interrupted")
        assert answer.headers["x-iir-attempts"] == "1"


async def test_the_preferred_endpoint_serves_as_long_as_it_can(start_router: StartRouter) -> None:
    async with two_engines(start_router) as scene:
        for _ in range(3):
            answer = await scene.client.post(CHAT, json=chat())
            assert answer.headers["x-iir-endpoint"] == "first"
            assert answer.headers["x-iir-attempts"] == "1"
        assert scene.second.requests == []


@pytest.mark.parametrize("code", [400, 404, 413, 422])
async def test_an_error_of_the_clients_own_is_not_tried_elsewhere(
    start_router: StartRouter, code: int
) -> None:
    async with two_engines(start_router) as scene:
        scene.first.script.add(f"status:code={code},shape=openai")
        answer = await scene.client.post(CHAT, json=chat())
        assert answer.status_code == code
        assert scene.second.requests == []


async def test_nothing_is_tried_after_the_first_byte(start_router: StartRouter) -> None:
    async with two_engines(start_router) as scene:
        for fault in ("cut:after=1", "error_event:after=1", "no_done"):
            scene.first.script.add(fault)
            answer = await scene.client.post(CHAT, json=chat(stream=True))
            assert (answer.status_code, answer.headers["x-iir-endpoint"]) == (200, "first")
            error_event_of(answer.content)
        assert scene.second.requests == []


async def test_the_last_error_reaches_the_client_with_its_advice(start_router: StartRouter) -> None:
    async with two_engines(start_router) as scene:
        scene.first.script.add("status:code=500,shape=openai")
        scene.second.script.add("status:code=429,shape=openai,retry_after=17")
        answer = await scene.client.post(CHAT, json=chat(stream=True))
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (429, "simulated")
        assert error["message"] == "simulated failure"
        assert answer.headers["retry-after"] == "17"
        assert answer.headers["x-iir-attempts"] == "2"
        assert answer.headers["x-iir-endpoint"] == "second"
        rows = await usage_of(scene.router)
        assert [(row["endpoint"], row["attempt"], row["status"]) for row in rows] == [
            ("first", 1, 500),
            ("second", 2, 429),
        ]
        metrics = (await scene.client.get("/metrics")).text
        assert 'outcome="upstream_error"' in metrics
        assert 'outcome="simulated"' not in metrics


async def test_no_more_attempts_than_the_setting_allows(start_router: StartRouter) -> None:
    async with two_engines(start_router, router_attempts=1) as scene:
        scene.first.script.add("status:code=503,shape=openai")
        answer = await scene.client.post(CHAT, json=chat())
        assert answer.status_code == 503
        assert scene.second.requests == []


async def test_an_upstream_that_refuses_our_credential_is_not_the_clients_fault(
    start_router: StartRouter,
) -> None:
    async with two_engines(start_router) as scene:
        for engine in (scene.first, scene.second):
            engine.script.add("status:code=401,shape=openai")
        answer = await scene.client.post(CHAT, json=chat())
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (502, "upstream_credential_refused")
        assert "iir doctor" in error["message"]


async def test_an_endpoint_where_nobody_listens(start_router: StartRouter) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with one_engine(start_router) as scene:

            def add_dead(connection: object) -> None:
                gone = Provider(name="gone", dialect="openai", base_url=dead, zone=Zone.LOCAL)
                add_provider(connection, gone)  # type: ignore[arg-type] # a connection
                for model in ("tiny", "lonely"):
                    row = DeploymentEntry(provider="gone", upstream_name=model, priority=1)
                    add_model(connection, model, row)  # type: ignore[arg-type] # a connection

            scene.router.write(add_dead)
            await scene.router.catch_up()
            answer = await scene.client.post(CHAT, json=chat())
            assert answer.headers["x-iir-endpoint"] == "engine"
            assert answer.headers["x-iir-attempts"] == "2"
            alone = await scene.client.post(CHAT, json=chat("lonely"))
            assert (alone.status_code, error_of(alone)["code"]) == (502, "upstream_unreachable")
            assert dead.rpartition(":")[2] not in alone.text


async def test_a_dialect_that_nobody_speaks_fails_over(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:

        def add_strange(connection: object) -> None:
            strange = Provider(
                name="strange", dialect="martian", base_url="http://127.0.0.1:9", zone=Zone.LOCAL
            )
            add_provider(connection, strange)  # type: ignore[arg-type] # a connection
            for model in ("tiny", "lonely"):
                row = DeploymentEntry(provider="strange", upstream_name=model, priority=1)
                add_model(connection, model, row)  # type: ignore[arg-type] # a connection

        scene.router.write(add_strange)
        await scene.router.catch_up()
        assert (await scene.client.post(CHAT, json=chat())).headers["x-iir-endpoint"] == "engine"
        alone = await scene.client.post(CHAT, json=chat("lonely"))
        assert (alone.status_code, error_of(alone)["code"]) == (503, "no_endpoint")


async def test_a_request_can_be_confined_to_a_zone(start_router: StartRouter) -> None:
    async with two_engines(start_router) as scene:
        for zone, status in (("local", 200), ("cloud", 403), ("cluster", 403)):
            answer = await scene.client.post(CHAT, json=chat(), headers={"x-iir-zone": zone})
            assert answer.status_code == status
        assert error_of(answer)["code"] == "zone_refused"
        odd = await scene.client.post(CHAT, json=chat(), headers={"x-iir-zone": "moon"})
        assert (odd.status_code, error_of(odd)["code"]) == (400, "invalid_request")
        assert "local, cluster, cloud" in odd.json()["error"]["message"]
        assert len(scene.first.requests) == 1


async def test_usage_of_a_stream_and_of_a_whole_answer_is_in_the_ledger(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router) as scene:
        whole = (await scene.client.post(CHAT, json=chat())).json()["usage"]
        options = {"include_usage": True}
        await scene.client.post(CHAT, json=chat(stream=True, stream_options=options))
        silent = await scene.client.post(CHAT, json=chat(stream=True))
        assert b"usage" not in silent.content  # asked for on the way, not shown to who did not
        rows = await usage_of(scene.router)
        counted = [(row["input_tokens"], row["output_tokens"]) for row in rows]
        expected = (whole["prompt_tokens"], whole["completion_tokens"])
        assert counted == [expected] * 3
        assert [(row["model"], row["zone"], row["key_id"]) for row in rows] == [
            ("tiny", "local", None)
        ] * 3
        assert json.dumps(rows).count("hello") == 0
