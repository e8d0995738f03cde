"""What failover promises: its deadline, its attempts, its advice, and the same story everywhere."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any

import httpx
import pytest

from router.domain import Provider, Zone
from router.store.catalog import add_model, add_provider
from shared.kit.clock import monotonic
from shared.kit.logs import configure_logs
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, chat, error_of, one_engine, settled, two_engines, usage_of
from tests.router.test_fleet_registry import row

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
BODIES: dict[str, dict[str, Any]] = {
    RESPONSES: {"model": "tiny", "input": "hello", "stream": True},
    MESSAGES: {
        "model": "tiny",
        "max_tokens": 20,
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
    },
}
IN_ANY_API = [
    *(f"status:code={code}" for code in (429, 500, 502, 503, 504, 529)),
    "error_event",
    "error_event:shape=openai",
    "error_event:shape=text",
    "error_event:shape=vllm_old",
    "error_event:shape=message",
    "cut:after=0",
    "no_done:after=0",
    "json_200",
    "error_200",
    "html_502",
    "bad_chunk",
]
OF_ONE_API = {
    RESPONSES: ["error_event:shape=responses", "error_event:shape=failed"],
    MESSAGES: [
        "error_event:shape=anthropic,code=529",
        "error_event:shape=anthropic_unnamed",
        "error_event:shape=bare",
    ],
}


@pytest.fixture
def log() -> io.StringIO:
    stream = io.StringIO()
    configure_logs(level="info", json=True, stream=stream)
    return stream


def logged(log: io.StringIO) -> dict[str, dict[str, Any]]:
    """Return the lines of requests by their ids."""
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return {line["request_id"]: line for line in lines if line["event"] == "request"}


async def first_and_second(
    router: RunningRouter, first_url: str, second_url: str, **fields: Any
) -> None:
    """Put the model `tiny` on two engines, of which the first is preferred."""

    def change(connection: Any) -> None:
        for number, (name, url) in enumerate({"first": first_url, "second": second_url}.items()):
            provider = Provider(
                name=name, dialect="openai", base_url=url, zone=Zone.LOCAL, **fields
            )
            add_provider(connection, provider)
            add_model(connection, "tiny", row(name, "tiny", priority=number))

    router.write(change)
    await router.catch_up()


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
async def test_other_apis_fail_over_at_their_first_event(
    start_router: StartRouter, path: str
) -> None:
    first, second = (SimulatedEngine(EngineOptions(models=("tiny",))) for _ in range(2))
    async with (
        running(first) as first_url,
        running(second) as second_url,
        start_router(router_retry_share=1) as router,
    ):
        await first_and_second(router, first_url, second_url, apis=("responses", "messages"))
        for fault in (*IN_ANY_API, *OF_ONE_API[path]):
            first.script.add(fault)
            router.router.fleet.rests.forget("first")
            answer = await router.client.post(path, json=BODIES[path])
            assert answer.status_code == 200, (fault, answer.text)
            taken = answer.headers["x-iir-endpoint"], answer.headers["x-iir-attempts"]
            assert taken == ("second", "2"), fault
            assert b"simulated failure" not in answer.content
        errors = [one["error"] for one in await usage_of(router)]
        assert None not in errors[::2]
        assert set(errors[1::2]) == {None}


@pytest.mark.parametrize("shape", ["responses", "failed"])
async def test_a_responses_own_failure_is_one_in_the_ledger_and_for_the_breaker(
    start_router: StartRouter, shape: str
) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with running(engine) as url, start_router(router_breaker_failures=2) as router:
        await first_and_second(router, url, "http://127.0.0.1:9", apis=("responses",))
        for _ in range(2):
            engine.script.add(f"error_event:after=2,shape={shape}")
            answer = await router.client.post(RESPONSES, json=BODIES[RESPONSES])
            assert answer.status_code == 200
            last = answer.text.rstrip().rpartition("\n\n")[2]
            assert last.startswith(
                "event: error" if shape == "responses" else "event: response.failed"
            )
            assert '"error":{"message"' not in last  # the endpoint's own event, and no second one
        rows = await usage_of(router)
        assert [(one["status"], one["error"]) for one in rows] == [(200, "server_error")] * 2
        assert router.router.fleet.breakers.wait_s("first", "tiny") is not None
        assert router.router.fleet.breakers.wait_s("first", "other") is None
        assert len(engine.requests) == 2  # nothing is asked again once a byte is out


async def test_an_anthropic_error_after_the_first_byte_counts_as_one(
    start_router: StartRouter,
) -> None:
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with running(engine) as url, start_router() as router:
        await first_and_second(router, url, "http://127.0.0.1:9", apis=("messages",))
        engine.script.add("error_event:after=2,shape=anthropic,code=529")
        answer = await router.client.post(MESSAGES, json=BODIES[MESSAGES])
        assert answer.text.count("event: error") == 1
        (one,) = await usage_of(router)
        assert (one["status"], one["error"]) == (200, "upstream_error")


async def test_header_log_and_ledger_tell_the_same_attempts(
    start_router: StartRouter, log: io.StringIO
) -> None:
    failing = "status:code=500,shape=openai"
    cases: list[tuple[str, str, str, int]] = [
        ("", "", "first", 1),
        (failing, "", "second", 2),
        (failing, failing, "second", 2),
        ("status:code=400,shape=openai", "", "first", 1),
        ("cut:after=0", "error_event", "second", 2),
        ("cut:after=2", "", "first", 1),
    ]
    async with two_engines(start_router, router_retry_share=1) as scene:
        seen: list[httpx.Response] = []
        for first, second, _, _ in cases:
            scene.first.script.add(*filter(None, [first]))
            scene.second.script.add(*filter(None, [second]))
            seen.append(await scene.client.post(CHAT, json=chat(stream=True)))
        await settled(scene.router)
        rows = Counter(one["request_id"] for one in await usage_of(scene.router))
    lines = logged(log)
    for answer, (first, second, endpoint, attempts) in zip(seen, cases, strict=True):
        case, request_id = (first, second), answer.headers["x-request-id"]
        told = answer.headers["x-iir-endpoint"], int(answer.headers["x-iir-attempts"])
        assert told == (endpoint, attempts), case
        line = lines[request_id]
        assert (line["endpoint"], line["attempts"], line["model"]) == (*told, "tiny"), case
        assert rows[request_id] == attempts, case


async def test_clients_are_told_not_to_multiply_our_attempts(start_router: StartRouter) -> None:
    async with two_engines(start_router) as scene:
        for engine in (scene.first, scene.second):
            engine.script.add("status:code=500,shape=openai")
        twice = await scene.client.post(CHAT, json=chat())
        assert (twice.headers["x-iir-attempts"], twice.headers["x-should-retry"]) == ("2", "false")
        scene.first.script.add("status:code=422,shape=openai")
        once = await scene.client.post(CHAT, json=chat())
        assert once.headers["x-iir-attempts"] == "1"
        assert "x-should-retry" not in once.headers


async def test_all_attempts_are_under_one_deadline(start_router: StartRouter) -> None:
    settings = {"router_deadline_s": 0.3, "router_first_byte_timeout_s": 0.2}
    async with two_engines(start_router, **settings) as scene:
        for stream in (True, False):
            scene.first.script.add("stall")
            scene.second.script.add("stall")
            began = monotonic()
            answer = await scene.client.post(CHAT, json=chat(stream=stream))
            assert 0.25 < monotonic() - began < 1.0
            assert (answer.status_code, error_of(answer)["code"]) == (504, "deadline_exceeded")
            assert (answer.headers["x-iir-attempts"], answer.headers["x-should-retry"]) == (
                "2",
                "false",
            )
        rows = [(one["attempt"], one["error"]) for one in await usage_of(scene.router)]
        assert rows == [(1, "upstream_timeout"), (2, "deadline_exceeded")] * 2
        await settled(scene.router)


async def test_a_stream_that_has_begun_is_under_no_deadline(start_router: StartRouter) -> None:
    async with two_engines(start_router, router_deadline_s=0.1) as scene:
        scene.first.script.add("slow:after=1,ms=250")
        answer = await scene.client.post(CHAT, json=chat(stream=True))
        assert answer.content.endswith(b"data: [DONE]\n\n")


async def test_a_pause_that_an_endpoint_asks_for_is_kept(start_router: StartRouter) -> None:
    async with two_engines(start_router) as scene:
        scene.first.script.add("status:code=429,shape=openai,retry_after=30")
        for attempts in ("2", "1", "1"):
            answer = await scene.client.post(CHAT, json=chat())
            assert answer.headers["x-iir-endpoint"] == "second"
            assert answer.headers["x-iir-attempts"] == attempts
        assert len(scene.first.requests) == 1
        scene.second.script.add("status:code=429,shape=openai,retry_after=20")
        last = await scene.client.post(CHAT, json=chat())
        assert (last.status_code, last.headers["retry-after"]) == (429, "20")
        # both pause: nobody is asked, and the client hears when the first of them is back
        none = await scene.client.post(CHAT, json=chat())
        assert (none.status_code, error_of(none)["code"]) == (429, "upstream_busy")
        assert 18 <= int(none.headers["retry-after"]) <= 20
        assert "x-iir-attempts" not in none.headers
        assert len(scene.first.requests) + len(scene.second.requests) == 5


async def test_a_429_without_advice_is_avoided_for_a_moment_and_never_a_wall(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router) as scene:
        for _ in range(3):
            scene.engine.script.add("status:code=429,shape=openai")
            assert (await scene.client.post(CHAT, json=chat())).status_code == 429
        assert (await scene.client.post(CHAT, json=chat())).status_code == 200
        assert len(scene.engine.requests) == 4


async def test_a_storm_of_failures_is_not_doubled(start_router: StartRouter) -> None:
    async with two_engines(start_router, router_retry_share=0.1) as scene:
        for engine in (scene.first, scene.second):
            engine.script.add("status:code=500,shape=openai,times=0")
        for _ in range(100):
            assert (await scene.client.post(CHAT, json=chat())).status_code == 500
        attempts = len(scene.first.requests) + len(scene.second.requests)
        assert 100 + 20 <= attempts <= 100 + 20 + 10
