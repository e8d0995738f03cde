"""`/internal/events` and `iir-agent events`: transitions, live and resumed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest

from local_agent.api.events import event_stream
from local_agent.domain import ModelId, WorkerEvent, WorkerState, WorkerStatus
from local_agent.intake import Intake
from local_agent.journal import Journal
from tests.local_agent.harness import CHAT, MESSAGES, RunningAgent, StartAgent, cli, until

SIMULATED = {"id": "sim", "engine": "simulated"}
EVENTS = "/internal/events"
LIFE = ["starting", "loading", "ready"]


class Ring(Journal):
    """A supervisor's events, without the supervisor."""

    def __init__(self) -> None:
        super().__init__(lambda: 5.0)
        self.intake = Intake(self.notify)

    def events(self, since: int = 0) -> tuple[WorkerEvent, ...]:
        return self.since(since)

    def add(self, number: int = 1) -> None:
        for _ in range(number):
            self.record(ModelId("m"), WorkerStatus(), WorkerStatus(state=WorkerState.STARTING), "r")

    def stream(self, since: int | None = None, **more: Any) -> AsyncIterator[str]:
        return event_stream(self, self.intake, since, **more)


def parsed(text: str) -> list[dict[str, Any]]:
    """Return the data of the events in a text."""
    lines = text.splitlines()
    return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


async def whole(ring: Ring, since: int | None = None) -> list[dict[str, Any]]:
    return parsed("".join([text async for text in ring.stream(since, follow=False)]))


async def test_an_event_says_what_happened_and_has_its_number_as_id() -> None:
    ring = Ring()
    ring.add()
    (text,) = [text async for text in ring.stream(follow=False)]
    assert text.startswith("id: 1\ndata: {")
    assert text.endswith("}\n\n")
    assert parsed(text) == [
        {
            "seq": 1,
            "ts": 5.0,
            "worker": "m",
            "from": "cold",
            "to": "starting",
            "reason": None,
            "request_id": "r",
        }
    ]


async def test_who_resumes_behind_what_is_remembered_hears_how_much_is_lost() -> None:
    ring = Ring()
    ring.add(1500)  # of which 1000 are remembered
    everything = await whole(ring)
    assert [event["seq"] for event in everything] == list(range(501, 1501))
    assert (await whole(ring, 1499))[0]["seq"] == 1500
    resumed = await whole(ring, 100)
    assert resumed[0] == {"lost": 400}
    assert resumed[1:] == everything
    assert await whole(ring, 1500) == []


async def test_a_number_of_an_agent_that_is_gone_is_known_as_such() -> None:
    ring = Ring()
    assert await whole(ring, 7) == [{"lost": None}]
    ring.add(2)
    assert [event.get("seq") for event in await whole(ring, 7)] == [None, 1, 2]


async def test_a_slow_reader_reads_on_in_the_ring_and_hears_what_it_missed() -> None:
    ring = Ring()
    ring.add(150)
    stream = ring.stream()
    found = parsed(await anext(stream))
    ring.add(2000)
    found += parsed(await anext(stream))
    assert found[:100][-1]["seq"] == 100
    assert found[100] == {"lost": 1050}
    assert found[101]["seq"] == 1151


async def test_an_idle_stream_gets_comments_and_ends_with_the_agent() -> None:
    ring = Ring()
    stream = ring.stream(keep_alive_s=0.01)
    assert await anext(stream) == ": keep-alive\n\n"
    ring.add()
    assert parsed(await anext(stream))[0]["seq"] == 1
    ring.intake.close()
    assert [text async for text in stream] == []


@asynccontextmanager
async def followed(agent: RunningAgent, **headers: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Follow the events over HTTP; the list grows."""
    found: list[dict[str, Any]] = []

    async def read(response: httpx.Response) -> None:
        async for line in response.aiter_lines():
            found.extend(parsed(line))

    async with (
        agent.client.stream("GET", EVENTS, headers=headers) as response,
        anyio.create_task_group() as group,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        group.start_soon(read, response)
        yield found
        group.cancel_scope.cancel()


async def test_a_load_is_followed_live_and_resumed(start_agent: StartAgent) -> None:
    async with start_agent(SIMULATED) as agent:
        async with followed(agent) as found:
            body = {"model": "sim", "messages": MESSAGES}
            answer = await agent.client.post(CHAT, json=body)
            await until(lambda: len(found) == 3)
        assert [event["to"] for event in found] == LIFE
        assert found[0]["request_id"] == answer.headers["x-request-id"]
        async with followed(agent, **{"last-event-id": "2"}) as rest:
            await until(lambda: rest)
        assert rest == found[2:]
        wrong = await agent.client.get(EVENTS, headers={"last-event-id": "x"})
        assert wrong.status_code == 400


async def test_streams_end_when_the_agent_is_told_to_stop(start_agent: StartAgent) -> None:
    async with start_agent(SIMULATED) as agent:
        ended = []

        async def follow(url: str) -> None:
            async with agent.client.stream("GET", url) as response:
                begun.append(response.status_code)
                async for _ in response.aiter_raw():
                    pass
            ended.append(url)

        begun: list[int] = []
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(follow, EVENTS)
                group.start_soon(follow, "/internal/models/sim/logs?follow=true")
                await until(lambda: len(begun) == 2)
                assert ended == []
                agent.agent.drain()
        assert (begun, len(ended)) == ([200, 200], 2)


@pytest.mark.slow
async def test_the_command_shows_lines_or_json(start_agent: StartAgent) -> None:
    async with start_agent({**SIMULATED, "preload": True}) as agent:
        await agent.until("sim", WorkerState.READY)
        done = await cli(agent, "events", "--no-follow")
        assert done.code == 0
        first, _, last = done.output.splitlines()
        assert first.endswith("1  sim  cold -> starting")
        assert last.endswith("3  sim  loading -> ready")
        since = await cli(agent, "events", "--no-follow", "--since", "2", "--json")
        assert [json.loads(line)["seq"] for line in since.output.splitlines()] == [3]
        missed = await cli(agent, "events", "--no-follow", "--since", "99")
        assert missed.output.splitlines()[0] == "-- the agent has started anew --"
