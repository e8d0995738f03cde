"""Plain calls on kept connections, which are served without a task: nobody can tell, whatever happens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from structlog.testing import capture_logs

from router.domain import Scope
from router.store.keys import revoke_key
from shared.testing.engine import EngineOptions
from shared.testing.raw_client import connected
from shared.testing.steps import Latency
from tests.router.harness import StartRouter, starter
from tests.router.kept import answer_from, ask, in_flight, limit, request_of, warm
from tests.router.scenes import (
    CHAT,
    chat,
    error_of,
    key,
    one_engine,
    settled,
    two_engines,
    usage_of,
)


def shown(answer: httpx.Response) -> dict[str, str]:
    """Return the headers of an answer that do not tell times or ids."""
    changing = {"x-request-id", "x-iir-overhead-ms", "content-length", "date"}
    return {name: value for name, value in answer.headers.items() if name not in changing}


async def test_a_plain_call_needs_no_task(start_router: StartRouter) -> None:
    options = EngineOptions(models=("tiny",), latency=Latency(ttft_s=0.1))
    async with one_engine(start_router, options) as scene:
        async with anyio.create_task_group() as group:  # twenty connections, kept
            for _ in range(20):
                group.start_soon(ask, scene.client)
        await settled(scene.router)
        requests = [request_of(chat()) for _ in range(10)]
        clients = [connected(scene.router.base_url) for _ in requests]
        streams = [await client.__aenter__() for client in clients]
        await asyncio.sleep(0)
        assert tasks_of_requests() == 0
        for (_, writer), request in zip(streams, requests, strict=True):
            writer.write(request)
        await in_flight(scene.router, 10)
        assert tasks_of_requests() == 0
        assert [(await answer_from(reader))[0] for reader, _ in streams] == [200] * 10
        for client in clients:
            await client.__aexit__(None, None, None)


def tasks_of_requests() -> int:
    return sum("run_asgi" in repr(task.get_coro()) for task in asyncio.all_tasks())


async def test_its_answer_row_and_line_are_those_of_a_task(tmp_path: Path) -> None:
    found = []
    for transport in ("lean", "aiohttp"):
        start = starter(tmp_path / transport)
        async with warm(start, router_transport=transport) as scene:
            with capture_logs() as lines:
                answer = await scene.client.post(
                    CHAT, json=chat(), headers={"x-request-id": "mine"}
                )
                line = await line_of(lines)
            row = (await usage_of(scene.router))[-1]
            assert answer.headers["x-request-id"] == row["request_id"] == "mine"
            assert answer.json()["usage"]["completion_tokens"] == row["output_tokens"]
            found.append(
                (shown(answer), sorted(answer.headers), answer.json().keys(), same(row), same(line))
            )
    assert found[0] == found[1]


async def line_of(lines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return a request's line, which comes just behind its answer."""
    with anyio.fail_after(10):
        while not (found := [line for line in lines if line["event"] == "request"]):
            await asyncio.sleep(0.001)
    return found[0]


def same(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what does not change from one request to the next; of the rest, that it is there."""
    changing = {"id", "ts", "ttft_s", "total_s", "duration_ms"}
    return [(name, name if name in changing else value) for name, value in facts.items()]


async def test_nothing_of_a_request_shows_in_the_next(start_router: StartRouter) -> None:
    async with warm(start_router) as scene:
        async with connected(scene.router.base_url) as (reader, writer):
            ids = set()
            for number in range(6):
                writer.write(request_of(chat(max_tokens=number + 1)))
                status, headers, body = await answer_from(reader)
                assert status == 200
                assert json.loads(body)["usage"]["completion_tokens"] <= number + 1
                ids.add(headers["x-request-id"])
                sent = scene.engine.requests[-1]
                assert isinstance(sent.body, dict)
                assert sent.body["max_tokens"] == number + 1
                assert sent.header("x-request-id") == headers["x-request-id"]
                assert sent.header("content-length") == str(len(sent.raw))
            assert len(ids) == 6
        rows = await usage_of(scene.router)
        assert {row["request_id"] for row in rows} >= ids


async def test_a_revoked_key_is_refused_on_a_connection_where_it_was_taken(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router) as scene:
        made = scene.router.write(key(Scope.INFERENCE))
        await scene.router.catch_up()
        async with connected(scene.router.base_url) as (reader, writer):
            head = f"authorization: Bearer {made}"
            for _ in range(3):
                writer.write(request_of(chat(), head))
                assert (await answer_from(reader))[0] == 200
            scene.router.write(lambda c: revoke_key(c, made))
            await scene.router.catch_up()
            writer.write(request_of(chat(), head))
            assert (await answer_from(reader))[0] == 401


async def test_bad_requests_between_good_ones_get_their_errors(start_router: StartRouter) -> None:
    async with warm(start_router) as scene:
        for bad, status in (
            (chat("nobody-knows-it"), 404),
            (chat(stream="yes"), 400),
            ({"messages": []}, 400),
        ):
            answer = await scene.client.post(CHAT, json=bad)
            assert answer.status_code == status
            assert error_of(answer)
            assert (await scene.client.post(CHAT, json=chat())).status_code == 200
        assert [row["status"] for row in await usage_of(scene.router)] == [200] * 5


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.7])
async def test_whoever_leaves_has_the_upstream_closed(
    start_router: StartRouter, after_s: float
) -> None:
    async with warm(start_router) as scene:
        scene.engine.script.add("stall")
        async with connected(scene.router.base_url) as (_, writer):
            writer.write(request_of(chat()))
            await scene.engine.journal.wait_for(lambda: len(scene.engine.requests) == 3)
            await asyncio.sleep(after_s)  # after 0.5 s it has a task
            gone_s = time.perf_counter()
        await scene.engine.journal.wait_for(lambda: scene.engine.requests[-1].aborted)
        assert time.perf_counter() - gone_s < 0.2  # well before anybody looks at the time
        assert scene.router.router.fleet.in_flight() == 0
        rows = await usage_of(scene.router)
        assert [row["error"] for row in rows] == [None, None, "abandoned"]
        assert scene.engine.requests[-1].connection == scene.engine.requests[-2].connection


async def test_places_are_given_back_however_calls_end(start_router: StartRouter) -> None:
    async with warm(start_router) as scene:
        scene.router.write(lambda c: limit(c, 1))
        await scene.router.catch_up()
        # one that is cut at once had most likely crossed with the end of the connection: it is sent again
        for fault, status in (("cut", 200), ("garbage", 502), ("empty_200", 502), ("stall", 0)):
            scene.engine.script.add(fault)
            with anyio.move_on_after(0.1 if fault == "stall" else 5):
                assert (await scene.client.post(CHAT, json=chat())).status_code == status
            await settled(scene.router)
            assert scene.router.router.admission.taken == 0
            assert (await scene.client.post(CHAT, json=chat())).status_code == 200


@pytest.mark.parametrize(
    "fault", ["status:code=500", "status:code=429", "garbage", "empty_200", "error_200"]
)
async def test_what_fails_goes_to_the_next(start_router: StartRouter, fault: str) -> None:
    async with two_engines(start_router) as scene:
        for _ in range(2):
            await ask(scene.client)
        scene.first.script.add(fault)
        answer = await scene.client.post(CHAT, json=chat())
        assert answer.status_code == 200
        assert answer.headers["x-iir-endpoint"] == "second"
        assert answer.headers["x-iir-attempts"] == "2"
        rows = (await usage_of(scene.router))[2:]
        assert [(row["attempt"], row["endpoint"]) for row in rows] == [(1, "first"), (2, "second")]


async def test_an_error_of_the_upstream_reaches_the_client(start_router: StartRouter) -> None:
    async with warm(start_router) as scene:
        scene.engine.script.add("status:code=400")
        answer = await scene.client.post(CHAT, json=chat())
        assert answer.status_code == 400
        assert error_of(answer)
        assert answer.headers["x-iir-attempts"] == "1"


async def test_a_slow_answer_comes(start_router: StartRouter) -> None:
    options = EngineOptions(models=("tiny",), latency=Latency(ttft_s=0.8))
    async with one_engine(start_router, options) as scene:
        for _ in range(2):
            await ask(scene.client)
        assert [row["status"] for row in await usage_of(scene.router)] == [200, 200]


async def test_requests_in_one_piece_are_answered_in_their_order(start_router: StartRouter) -> None:
    async with warm(start_router) as scene, connected(scene.router.base_url) as (reader, writer):
        for many in (1, 3, 1, 2):
            writer.write(b"".join(request_of(chat(max_tokens=n + 1)) for n in range(many)))
            for number in range(many):
                status, _, body = await answer_from(reader)
                assert status == 200
                assert json.loads(body)["usage"]["completion_tokens"] <= number + 1


async def test_a_request_in_pieces_is_served(start_router: StartRouter) -> None:
    async with warm(start_router) as scene:
        request = request_of(chat(filler="x" * 100_000))
        async with connected(scene.router.base_url) as (reader, writer):
            for cut in (1, 30, 200, 70_000):
                writer.write(request[:cut])
                await asyncio.sleep(0.02)
                writer.write(request[cut:])
                assert (await answer_from(reader))[0] == 200
            writer.write(request[:90_000])
            await asyncio.sleep(0.4)  # by now a task waits for the rest
            writer.write(request[90_000:])
            assert (await answer_from(reader))[0] == 200
        assert all(len(seen.raw) > 100_000 for seen in scene.engine.requests[2:])


@pytest.mark.parametrize(("version", "further"), [("1.0", ()), ("1.1", ("connection: close",))])
async def test_a_connection_that_is_not_to_be_kept_is_closed(
    start_router: StartRouter, version: str, further: tuple[str, ...]
) -> None:
    async with warm(start_router) as scene, connected(scene.router.base_url) as (reader, writer):
        writer.write(request_of(chat(), *further, version=version))
        status, headers, _ = await answer_from(reader)
        assert (status, headers["connection"]) == (200, "close")
        with anyio.fail_after(5):
            assert await reader.read() == b""


async def test_rubbish_behind_a_request_is_refused_behind_its_answer(
    start_router: StartRouter,
) -> None:
    async with warm(start_router) as scene, connected(scene.router.base_url) as (reader, writer):
        writer.write(request_of(chat()) + b"rubbish\r\n\r\n")
        assert (await answer_from(reader))[0] == 200
        with anyio.fail_after(5):
            rest = await reader.read()
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400")


async def test_headers_of_a_page_are_judged_on_a_known_connection(
    start_router: StartRouter,
) -> None:
    async with warm(start_router) as scene, connected(scene.router.base_url) as (reader, writer):
        for _ in range(2):
            writer.write(request_of(chat()))
            assert (await answer_from(reader))[0] == 200
        writer.write(request_of(chat(), "origin: http://evil.example"))
        assert (await answer_from(reader))[0] == 403
        writer.write(request_of(chat()).replace(b"localhost", b"evil.test"))
        assert (await answer_from(reader))[0] == 403


async def test_a_stop_waits_for_a_call_that_has_no_task(start_router: StartRouter) -> None:
    options = EngineOptions(models=("tiny",), latency=Latency(ttft_s=0.2))
    answers: list[httpx.Response] = []
    async with anyio.create_task_group() as group:
        async with one_engine(start_router, options) as scene:
            await ask(scene.client)
            client = httpx.AsyncClient(base_url=scene.router.base_url, timeout=10, verify=False)

            async def ask_once() -> None:
                answers.append(await client.post(CHAT, json=chat()))

            group.start_soon(ask_once)
            await in_flight(scene.router)
            assert tasks_of_requests() == 0
            assert not answers
        with anyio.fail_after(10):
            while not answers:
                await asyncio.sleep(0.01)
        await client.aclose()
    assert [answer.status_code for answer in answers] == [200]


async def test_a_short_deadline_holds(start_router: StartRouter) -> None:
    async with warm(start_router, router_deadline_s=0.2) as scene:
        scene.engine.script.add("stall")
        started_s = time.perf_counter()
        answer = await scene.client.post(CHAT, json=chat())
        assert answer.status_code == 504
        assert error_of(answer)["code"] == "deadline_exceeded"
        assert time.perf_counter() - started_s < 2
        assert [row["error"] for row in await usage_of(scene.router)][2:] == ["deadline_exceeded"]
