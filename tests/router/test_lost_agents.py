"""An agent that falls silent without closing anything: what it was sent goes elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import httpx
import pytest

from router.domain import Endpoint, EndpointId, LeaseBook, Zone
from router.fleet.membership import Membership
from router.fleet.waits import Waits
from shared.contracts.agents import AgentModel, Heartbeat, Registration
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.local_agent.harness import until
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, chat, error_of, settled, usage_of
from tests.router.test_breakers_serve import Ahead
from tests.router.test_fleet_membership import FakeClock

TTL_S = 30.0
SLOW_POLL_S = 1000.0


def register(
    membership: Membership,
    row_id: int,
    url: str = "http://127.0.0.1:9",
    *,
    incarnation: int | None = None,
    max_in_flight: int | None = None,
) -> None:
    registration = Registration(
        incarnation=incarnation or row_id,
        name="label",
        base_url=url,
        access_token="t" * 32,
        models=(AgentModel(id="tiny", max_in_flight=max_in_flight),),
    )
    membership.register(row_id, f"mac{row_id}", f"id{row_id}", registration, "l")


def beat(membership: Membership, row_id: int, seq: int = 1) -> None:
    membership.renew(row_id, Heartbeat(lease_id="l", incarnation=row_id, seq=seq))


def at(row_id: int, incarnation: int | None = None) -> Endpoint:
    """Return the endpoint of an agent's start; its first unless told otherwise."""
    return Endpoint(
        id=EndpointId(f"agent:mac{row_id}"),
        base_url="http://127.0.0.1:9",
        backend="openai",
        zone=Zone.LOCAL,
        incarnation=incarnation or row_id,
    )


async def is_cut(
    waits: Waits, *endpoints: Endpoint, then: Callable[[], None], stays: bool = False
) -> bool:
    """Wait for endpoints, let something happen, and tell whether the wait was cut short."""
    ended: list[Endpoint] = []
    with waits.on(endpoints, while_none=lambda: not stays):
        await asyncio.sleep(0)
        then()
        waits.cut_lost()
        await asyncio.sleep(0)
        ended.extend(endpoints)
    return not ended


async def test_who_waits_for_a_lost_agent_is_cut_and_nobody_else() -> None:
    clock = FakeClock()
    membership = Membership(clock, TTL_S)
    waits = Waits(membership)

    def pass_time(seconds: float) -> Callable[[], None]:
        register(membership, 1)
        register(membership, 2)

        def later() -> None:
            clock.now += seconds
            beat(membership, 2)

        return later

    assert not await is_cut(waits, at(1), then=pass_time(2 * TTL_S - 1))
    assert await is_cut(waits, at(1), then=pass_time(2 * TTL_S))
    assert await is_cut(waits, at(1), at(2), then=pass_time(2 * TTL_S))
    assert not await is_cut(waits, at(1), at(2), then=pass_time(2 * TTL_S), stays=True)
    assert not await is_cut(waits, at(2), then=pass_time(2 * TTL_S))


async def test_who_waits_for_an_earlier_start_or_a_removed_agent_is_cut() -> None:
    membership = Membership(FakeClock(), TTL_S)
    waits = Waits(membership)
    register(membership, 1)
    assert not await is_cut(waits, at(1), then=lambda: register(membership, 1))
    assert await is_cut(waits, at(1), then=lambda: register(membership, 1, incarnation=7))
    assert not await is_cut(waits, at(1, 7), then=lambda: None)
    assert await is_cut(waits, at(1, 7), then=lambda: membership.merge(LeaseBook(), 0.0))


def test_an_agent_that_drains_or_said_goodbye_is_not_lost() -> None:
    clock = FakeClock()
    membership = Membership(clock, TTL_S)
    register(membership, 1)
    membership.renew(1, Heartbeat(lease_id="l", incarnation=1, seq=1, state="draining"))
    member = membership.get(1)
    assert member is not None
    assert not membership.is_lost(member)
    membership.release(1)
    clock.now += 10 * TTL_S
    member = membership.get(1)
    assert member is not None
    assert not membership.is_lost(member)


async def sent(router: RunningRouter, engine: SimulatedEngine) -> asyncio.Task[httpx.Response]:
    """Send a request to an agent that never answers, and return once it is there."""
    engine.script.add("stall")
    asked = asyncio.ensure_future(router.client.post(CHAT, json=chat()))
    await engine.journal.wait_for(lambda: bool(engine.requests))
    return asked


@pytest.mark.parametrize("has_other", [True, False])
async def test_the_client_of_a_frozen_agent_hears_of_it(
    start_router: StartRouter, has_other: bool
) -> None:
    clock = Ahead()
    frozen, other = (SimulatedEngine(EngineOptions(models=("tiny",))) for _ in range(2))
    async with (
        running(frozen) as frozen_url,
        running(other) as other_url,
        start_router(clock=clock, router_catalog_poll_s=SLOW_POLL_S) as router,
    ):
        fleet = router.router.fleet
        register(fleet.membership, 1, frozen_url)
        fleet.patch()
        asked = await sent(router, frozen)
        clock.s += 2 * TTL_S + 1
        if has_other:
            register(fleet.membership, 2, other_url)
            beat(fleet.membership, 2)
            fleet.patch()
        fleet.waits.cut_lost()
        answer = await asked
        await frozen.journal.wait_for(lambda: frozen.requests[0].aborted)
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "agent_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
        rows = await usage_of(router)
        assert [(row["endpoint"], row["error"]) for row in rows] == [
            ("agent:mac1", "agent_unavailable")
        ]
        again = await router.client.post(CHAT, json=chat())
        assert again.status_code == (200 if has_other else 503)
        await settled(router)


async def test_a_request_that_a_frozen_agent_holds_fails_over(start_router: StartRouter) -> None:
    clock = Ahead()
    frozen, other = (SimulatedEngine(EngineOptions(models=("tiny",))) for _ in range(2))
    async with (
        running(frozen) as frozen_url,
        running(other) as other_url,
        start_router(
            clock=clock, router_catalog_poll_s=SLOW_POLL_S, router_policy="priority"
        ) as router,
    ):
        membership = router.router.fleet.membership
        register(membership, 1, frozen_url)
        register(membership, 2, other_url)
        router.router.fleet.patch()
        asked = await sent(router, frozen)
        clock.s += 2 * TTL_S + 1
        beat(membership, 2)
        router.router.fleet.waits.cut_lost()
        answer = await asked
        assert (answer.status_code, answer.headers["x-iir-endpoint"]) == (200, "agent:mac2")
        assert answer.headers["x-iir-attempts"] == "2"
        rows = [(row["attempt"], row["error"]) for row in await usage_of(router)]
        assert rows == [(1, "agent_unavailable"), (2, None)]


async def test_an_answer_on_its_way_is_never_cut(start_router: StartRouter) -> None:
    """Only its heartbeats are missing: it serves, as anybody can see."""
    clock = Ahead()
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with (
        running(engine) as url,
        start_router(clock=clock, router_catalog_poll_s=SLOW_POLL_S) as router,
    ):
        register(router.router.fleet.membership, 1, url)
        router.router.fleet.patch()
        engine.script.add("slow:after=1,ms=100")
        async with router.client.stream("POST", CHAT, json=chat(stream=True)) as answer:
            chunks = answer.aiter_bytes()
            first = await chunks.__anext__()
            clock.s += 2 * TTL_S + 1
            router.router.fleet.waits.cut_lost()
            rest = b"".join([chunk async for chunk in chunks])
        assert (first + rest).endswith(b"data: [DONE]\n\n")


async def test_all_who_wait_are_cut_and_who_has_left_is_not() -> None:
    clock = FakeClock()
    membership = Membership(clock, TTL_S)
    waits = Waits(membership)
    register(membership, 1)
    cut: dict[str, bool] = {}

    async def wait(name: str, seconds: float) -> None:
        with waits.on([at(1)]) as block:
            await asyncio.sleep(seconds)
        cut[name] = block.is_cut

    waiting = [asyncio.ensure_future(wait(*each)) for each in (("a", 9), ("b", 9), ("left", 0))]
    await asyncio.sleep(0.01)
    clock.now += 2 * TTL_S
    waits.cut_lost()
    await asyncio.wait_for(asyncio.gather(*waiting), 2)
    assert cut == {"a": True, "b": True, "left": False}


@pytest.mark.parametrize("is_removed", [True, False])
async def test_what_an_earlier_start_holds_or_queues_ends_at_once(
    start_router: StartRouter, is_removed: bool
) -> None:
    """Of two requests the agent has one, and the other waits for its place."""
    engine = SimulatedEngine(EngineOptions(models=("tiny",)))
    async with (
        running(engine) as url,
        start_router(router_catalog_poll_s=SLOW_POLL_S) as router,
    ):
        fleet = router.router.fleet
        register(fleet.membership, 1, url, max_in_flight=1)
        fleet.patch()
        asked = [await sent(router, engine)]
        asked.append(asyncio.ensure_future(router.client.post(CHAT, json=chat())))
        await until(lambda: router.router.admission.waiting)
        if is_removed:
            fleet.membership.merge(LeaseBook(), fleet.membership.now())
        else:
            register(fleet.membership, 1, url, incarnation=7, max_in_flight=1)
        fleet.patch()
        for answer in await asyncio.wait_for(asyncio.gather(*asked), 2):
            assert (answer.status_code, error_of(answer)["code"]) == (503, "agent_unavailable")
        again = await router.client.post(CHAT, json=chat())
        assert again.status_code == (404 if is_removed else 200)
        assert len(fleet.breakers) == 0
        await settled(router)


async def test_who_may_go_elsewhere_keeps_its_place_in_the_queue(start_router: StartRouter) -> None:
    first, second = (SimulatedEngine(EngineOptions(models=("tiny",))) for _ in range(2))
    async with (
        running(first) as first_url,
        running(second) as second_url,
        start_router(router_catalog_poll_s=SLOW_POLL_S) as router,
    ):
        fleet = router.router.fleet
        register(fleet.membership, 1, first_url, max_in_flight=1)
        register(fleet.membership, 2, second_url, max_in_flight=1)
        fleet.patch()
        first.script.add("stall")
        second.script.add("slow:ms=1000")
        asked = []

        def has_come(count: int) -> bool:
            return len(first.requests) + len(second.requests) >= count

        for count in (1, 2):
            asked.append(asyncio.ensure_future(router.client.post(CHAT, json=chat())))
            await until(partial(has_come, count))
        asked.append(asyncio.ensure_future(router.client.post(CHAT, json=chat())))
        await until(lambda: router.router.admission.waiting)
        register(fleet.membership, 1, first_url, incarnation=7, max_in_flight=1)
        fleet.patch()
        last = await asyncio.wait_for(asked[-1], 2)
        assert (last.status_code, last.headers["x-iir-endpoint"]) == (200, "agent:mac2")
        await asyncio.gather(*asked)
        await settled(router)
