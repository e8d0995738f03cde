"""Three times more requests than an endpoint can serve: what it serves, and what the others hear.

`pytest -rP` shows the figures.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from router.domain import Provider, Zone
from router.store.catalog import add_model, add_provider
from shared.kit.clock import monotonic
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.steps import Latency
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import CHAT, bearer, chat, error_of, key, settled
from tests.router.test_fleet_registry import row

# a machine of its own: it holds times that other tests beside it would spoil
pytestmark = pytest.mark.integration

PLACES, SERVICE_S = 10, 0.25
CAPACITY = PLACES / SERVICE_S
QUEUE, QUEUE_S = 16, 1.0
SECONDS, WARM_UP_S = 4.0, 1.0


@dataclass(slots=True)
class Heard:
    """What one client's requests came to: when each was sent and ended, and its status."""

    answers: list[tuple[float, float, int]] = field(default_factory=list)

    def times(self, *statuses: int) -> list[float]:
        return [ended - sent for sent, ended, status in self.answers if status in statuses]

    def served_between(self, start: float, end: float) -> int:
        return sum(start <= ended < end for _, ended, status in self.answers if status == 200)


@asynccontextmanager
async def limited(start: StartRouter, **settings: Any) -> AsyncIterator[RunningRouter]:
    """Start a router in front of an engine that takes `PLACES` requests at once."""
    options = EngineOptions(
        models=("tiny",), slots=PLACES, latency=Latency(ttft_s=SERVICE_S), tokens=1
    )
    defaults = {"router_queue": QUEUE, "router_queue_s": QUEUE_S}
    async with (
        running(SimulatedEngine(options)) as url,
        start(**{**defaults, **settings}) as router,
    ):

        def register(connection: Any) -> None:
            provider = Provider(
                name="engine",
                dialect="openai",
                base_url=url,
                zone=Zone.LOCAL,
                max_in_flight=PLACES,
            )
            add_provider(connection, provider)
            add_model(connection, "tiny", row("engine", "tiny"))

        router.write(register)
        await router.catch_up()
        yield router


async def offer(
    router: RunningRouter, rate: float, headers: Mapping[str, str], heard: Heard
) -> None:
    """Send so many requests a second, whatever becomes of them, for `SECONDS`."""

    async def ask() -> None:
        sent_at = monotonic()
        answer = await router.client.post(CHAT, json=chat(), headers=headers)
        heard.answers.append((sent_at, monotonic(), answer.status_code))
        if answer.status_code != 200:
            assert error_of(answer)["code"] in {"queue_full", "queue_timeout"}
            assert int(answer.headers["retry-after"]) >= 1

    began = monotonic()
    async with anyio.create_task_group() as group:
        for number in range(int(rate * SECONDS)):
            await asyncio.sleep(max(0.0, began + number / rate - monotonic()))
            group.start_soon(ask)


def shown(times: list[float]) -> str:
    ordered = sorted(times)
    return f"p50 {statistics.median(ordered) * 1000:.0f} ms, max {ordered[-1] * 1000:.0f} ms"


async def test_goodput_stays_at_three_times_the_capacity(start_router: StartRouter) -> None:
    async with limited(start_router) as router:
        heard, most = Heard(), 0
        began = monotonic()
        async with anyio.create_task_group() as group:
            group.start_soon(offer, router, 3 * CAPACITY, {}, heard)
            while monotonic() < began + SECONDS:
                await asyncio.sleep(0.02)
                most = max(most, router.router.admission.waiting)
        await settled(router)
        served = heard.served_between(began + WARM_UP_S, began + SECONDS)
        share = served / (SECONDS - WARM_UP_S) / CAPACITY
        refused = heard.times(429)
        figures = f"goodput {share:.0%} of {CAPACITY:.0f}/s; queue at most {most}"
        print(figures)  # noqa: T201 - a measurement
        print(f"refused {len(refused)}: {shown(refused)}")  # noqa: T201 - likewise
        print(f"served: {shown(heard.times(200))}")  # noqa: T201 - likewise
        assert {status for _, _, status in heard.answers} == {200, 429}
        assert share >= 0.9  # 95 % and more on a machine that has nothing else to do
        assert statistics.median(refused) < 0.05
        assert most <= QUEUE
        assert max(heard.times(200)) < QUEUE_S + SERVICE_S + 0.5
        assert router.router.admission.taken == router.router.admission.waiting == 0


async def test_who_waits_in_vain_hears_so_within_the_queues_deadline(
    start_router: StartRouter,
) -> None:
    """Nothing is known yet of how long requests take, so some wait until the deadline."""
    async with limited(start_router, router_queue=200, router_queue_s=0.1) as router:
        answers = await asyncio.gather(
            *(router.client.post(CHAT, json=chat()) for _ in range(4 * PLACES))
        )
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) == PLACES
        assert statuses.count(503) == 3 * PLACES
        assert {int(a.headers["retry-after"]) for a in answers if a.status_code == 503} == {1}


async def test_a_polite_key_is_served_beside_one_that_floods(start_router: StartRouter) -> None:
    async with limited(start_router) as router:
        greedy_key, polite_key = router.write(key()), router.write(key())
        await router.catch_up()
        greedy, polite = Heard(), Heard()
        async with anyio.create_task_group() as group:
            group.start_soon(offer, router, 2.5 * CAPACITY, bearer(greedy_key), greedy)
            group.start_soon(offer, router, CAPACITY / 4, bearer(polite_key), polite)
        await settled(router)
        served = len(polite.times(200)) / len(polite.answers)
        figures = f"polite: {served:.0%} served, {shown(polite.times(200))}"
        print(figures)  # noqa: T201 - a measurement
        print(f"greedy: {len(greedy.times(200))} served, {shown(greedy.times(200))}")  # noqa: T201
        # all of the polite one's are served, in 1.5 service times, on a machine with nothing else to do
        assert served > 2 * len(greedy.times(200)) / len(greedy.answers)
        assert statistics.median(polite.times(200)) < statistics.median(greedy.times(200))
        assert len(greedy.times(200)) > 2 * len(polite.times(200))  # what is left is its own
