"""Clients that leave in odd ways; each phase of a request is in `test_cancellation`."""

from __future__ import annotations

import asyncio

import anyio

from shared.testing.engine import EngineOptions
from shared.testing.raw_client import connected, render_request
from shared.testing.steps import Latency
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, chat, one_engine, settled, two_engines, usage_of

SLOW = EngineOptions(models=("tiny",), tokens=200, latency=Latency(itl_s=0.02))


async def test_a_client_that_leaves_in_its_body_reaches_nobody(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        request = render_request("POST", CHAT, chat(), {"host": "localhost"})
        async with connected(scene.router.base_url) as (_, writer):
            writer.write(request[:-10])
            await asyncio.sleep(0.03)
        await asyncio.sleep(0.03)
        assert scene.engine.requests == []
        assert scene.router.router.fleet.in_flight() == 0


async def test_nobody_else_is_tried_for_a_client_that_left(start_router: StartRouter) -> None:
    async with two_engines(start_router) as scene:
        scene.first.script.add("stall")
        request = render_request("POST", CHAT, chat(), {"host": "localhost"})
        async with connected(scene.router.base_url) as (_, writer):
            writer.write(request)
            await scene.first.journal.wait_for(lambda: bool(scene.first.requests))
        await settled(scene.router)
        assert scene.second.requests == []


async def test_a_storm_of_clients_that_leave_leaks_nothing(start_router: StartRouter) -> None:
    async with one_engine(start_router, SLOW) as scene:
        tasks_before = len(asyncio.all_tasks())

        async def come_and_go(number: int) -> None:
            request = render_request(
                "POST", CHAT, chat(stream=number % 2 == 0), {"host": "localhost"}
            )
            async with connected(scene.router.base_url) as (_, writer):
                writer.write(request)
                await asyncio.sleep(0.001 * (number % 40))

        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(come_and_go, number)
        await settled(scene.router, timeout_s=3)
        await scene.engine.journal.wait_for(
            lambda: all(seen.ended_s is not None for seen in scene.engine.requests)
        )
        await asyncio.sleep(0.1)
        assert len(asyncio.all_tasks()) <= tasks_before + 2
        assert (await scene.client.post(CHAT, json=chat(max_tokens=1))).status_code == 200


async def test_a_served_client_that_leaves_is_no_abandoned_one(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for stream in (True, False):
            request = render_request("POST", CHAT, chat(stream=stream), {"host": "localhost"})
            async with connected(scene.router.base_url) as (reader, writer):
                writer.write(request)
                await reader.read(-1)
        rows = await usage_of(scene.router)
        assert [row["error"] for row in rows] == [None, None]
        assert all(row["status"] == 200 and row["ttft_s"] is not None for row in rows)
