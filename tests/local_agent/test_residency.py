"""Models that do not fit together, with fakes around the supervisor and a clock that is set by hand."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from local_agent.domain import ModelId
from local_agent.errors import InsufficientMemory
from local_agent.lifecycle import FailureRule
from local_agent.memory.outlook import Verdict
from shared.http.errors import ModelLoading
from tests.local_agent.residency import (
    A,
    B,
    S,
    look,
    running,
    settled,
    sized,
    states,
    supervised,
    wake,
)

if TYPE_CHECKING:
    from tests.local_agent.conftest import Stage


async def test_an_idle_model_makes_room(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, "a", 60), sized(stage, "b", 60))
    async with running(supervisor):
        await supervisor.ensure_ready(A, 5)
        assert supervisor.outlook(B).verdict is Verdict.EVICTS
        await supervisor.ensure_ready(B, 5)
        assert states(supervisor) == {"a": S.COLD, "b": S.READY}
        assert supervisor.residency.ledger.held == {B: 60}
        assert [event.reason for event in supervisor.events() if event.to_state is S.STOPPING] == [
            "it makes room for b"
        ]


async def test_models_that_fit_stay_together(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, "a", 60), sized(stage, "b", 40))
    async with running(supervisor):
        await supervisor.ensure_ready(A, 5)
        assert supervisor.outlook(B).verdict is Verdict.FITS
        await supervisor.ensure_ready(B, 5)
        assert states(supervisor) == {"a": S.READY, "b": S.READY}
        assert supervisor.outlook(B).verdict is Verdict.LOADED
        assert [(view.memory_mb, view.is_pinned) for view in supervisor.workers()] == [
            (60, False),
            (40, False),
        ]


async def test_a_busy_model_finishes_its_work_first_however_long(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, "a", 60), sized(stage, "b", 60))
    supervisor.residency.swap_after_s = 0
    async with running(supervisor):
        await supervisor.ensure_ready(A, 5)
        with await supervisor.admission.admit(A, load_wait_s=5):
            assert supervisor.outlook(B).verdict is Verdict.WAITS
            with pytest.raises(ModelLoading, match="model b waits until other models have made"):
                await supervisor.ensure_ready(B, 0.01)
            await settled(supervisor, "a", S.DRAINING)
            stage.clock.now += 10_000
            await look(supervisor, sized(stage, "a", 60), sized(stage, "b", 60))
            assert states(supervisor)["a"] is S.DRAINING
            assert len(stage.launcher.alive()) == 1
        with anyio.fail_after(5):
            await supervisor.ensure_ready(B, 5)
        assert states(supervisor) == {"a": S.COLD, "b": S.READY}


@pytest.mark.slow
async def test_a_loaded_model_goes_on_serving_until_another_has_waited_for_long(
    stage: Stage,
) -> None:
    two = sized(stage, "a", 60), sized(stage, "b", 60)
    supervisor = supervised(stage, *two)
    admit = partial(supervisor.admission.admit, load_wait_s=1000)
    async with running(supervisor), anyio.create_task_group() as group:
        with await admit(A):
            asked = asyncio.ensure_future(admit(B))
            await anyio.wait_all_tasks_blocked()
            stage.clock.now += 29
            wake(supervisor, *two)
            await anyio.wait_all_tasks_blocked()
            with await admit(A):
                assert states(supervisor) == {"a": S.READY, "b": S.COLD}
            stage.clock.now += 1
            wake(supervisor, *two)
            await settled(supervisor, "a", S.DRAINING)
            late = asyncio.ensure_future(admit(A))
            await anyio.wait_all_tasks_blocked()
            assert not asked.done()
            assert not late.done()
        with await asked:
            assert states(supervisor)["b"] is S.READY
        with await late:
            assert states(supervisor) == {"a": S.READY, "b": S.COLD}
        group.cancel_scope.cancel()


async def test_nothing_is_sent_away_for_a_client_that_has_left(stage: Stage) -> None:
    two = sized(stage, "a", 60), sized(stage, "b", 60)
    supervisor = supervised(stage, *two, min_residency_s=10)
    async with running(supervisor):
        await supervisor.ensure_ready(A, 5)
        with anyio.move_on_after(0.02):
            await supervisor.admission.admit(B, load_wait_s=60)
        await anyio.wait_all_tasks_blocked()
        assert not supervisor.residency.is_queued(B)
        stage.clock.now += 100
        wake(supervisor, *two)
        await anyio.wait_all_tasks_blocked()
        assert states(supervisor) == {"a": S.READY, "b": S.COLD}


async def test_the_evicted_model_comes_back_for_who_waits(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, "a", 60), sized(stage, "b", 60))
    served: list[str] = []

    async def ask(model: ModelId) -> None:
        for _ in range(20):
            with await supervisor.admission.admit(model, load_wait_s=5):
                await anyio.lowlevel.checkpoint()
            served.append(model)

    async with running(supervisor):
        async with anyio.create_task_group() as clients:
            for model in (A, B, A):
                clients.start_soon(ask, model)
        assert (served.count("a"), served.count("b")) == (40, 20)
        assert len(stage.launcher.alive()) == 1


async def test_a_young_model_stays_for_a_while(stage: Stage) -> None:
    two = sized(stage, "a", 60), sized(stage, "b", 60)
    supervisor = supervised(stage, *two, min_residency_s=10)
    async with running(supervisor):
        await supervisor.ensure_ready(A, 5)
        stage.clock.now += 9
        with pytest.raises(ModelLoading):
            await supervisor.ensure_ready(B, 0.02)
        assert states(supervisor)["a"] is S.READY
        stage.clock.now += 1
        wake(supervisor, *two)
        await supervisor.ensure_ready(B, 5)
        assert states(supervisor)["a"] is S.COLD


async def test_a_pinned_model_stays_and_the_plan_is_told(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, "a", 60, pin=True), sized(stage, "b", 60))
    async with running(supervisor):
        await supervisor.ensure_ready(A, 5)
        with pytest.raises(InsufficientMemory, match=r"pinned: a .*iir-agent unpin a") as raised:
            await supervisor.ensure_ready(B, 5)
        assert raised.value.status == 507
        error = json.loads(raised.value.body())["error"]
        assert (error["code"], error["type"], error["param"]) == (
            "insufficient_memory",
            "server_error",
            None,
        )
        assert error["plan"] == {
            "model": "b",
            "verdict": "never",
            "needs_mb": 60,
            "free_mb": 40,
            "budget_mb": 100,
            "would_go": [{"model": "a", "memory_mb": 60, "is_pinned": True, "is_busy": False}],
        }
        supervisor.pin(A, is_pinned=False)
        await supervisor.ensure_ready(B, 5)


async def test_a_pin_refuses_who_waits_already(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, "a", 60), sized(stage, "b", 60), min_residency_s=9)
    async with running(supervisor), anyio.create_task_group() as group:
        await supervisor.ensure_ready(A, 5)

        async def ask() -> None:
            with pytest.raises(InsufficientMemory):
                await supervisor.ensure_ready(B, 5)

        group.start_soon(ask)
        with anyio.fail_after(5):
            # health checks by real time may keep "all tasks are blocked" from ever being so
            while not supervisor.residency.is_queued(B):
                await anyio.sleep(0.001)
        supervisor.pin(A, is_pinned=True)


async def test_what_is_over_the_budget_is_refused(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, "a", 101, preload=True), sized(stage, "b", 10))
    async with running(supervisor):
        with pytest.raises(InsufficientMemory, match=r"more than the 100 MiB .*memory_budget"):
            await supervisor.ensure_ready(A, 5)
        await supervisor.ensure_ready(B, 5)
        assert states(supervisor) == {"a": S.COLD, "b": S.READY}


async def test_an_idle_model_goes_after_its_ttl(stage: Stage) -> None:
    two = sized(stage, "a", 10, ttl_s=30.0), sized(stage, "b", 10, ttl_s=30.0, pin=True)
    supervisor = supervised(stage, *two)
    async with running(supervisor):
        await supervisor.ensure_ready(A, 5)
        await supervisor.ensure_ready(B, 5)
        with await supervisor.admission.admit(A, load_wait_s=5):
            stage.clock.now += 100
            await look(supervisor, *two)
            assert states(supervisor)["a"] is S.READY, "it is busy"
        stage.clock.now += 29
        await look(supervisor, *two)
        assert states(supervisor)["a"] is S.READY
        stage.clock.now += 1
        wake(supervisor, *two)
        await settled(supervisor, "a", S.COLD)
        assert supervisor.events()[-1].reason is None
        assert supervisor.events()[-2].reason == "it was idle for 30 s"
        assert states(supervisor)["b"] is S.READY, "it is pinned"
        await supervisor.ensure_ready(A, 5)


async def test_the_ttl_needs_no_request_to_be_noticed(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, "a", 10, ttl_s=0.02))
    async with running(supervisor):
        await supervisor.ensure_ready(A, 5)
        with await supervisor.admission.admit(A, load_wait_s=5):
            pass
        stage.clock.now += 0.03  # the loop sleeps by real time, and looks at this clock
        await settled(supervisor, "a", S.COLD)
        assert "it was idle" in (supervisor.events()[-2].reason or "")


async def test_preloaded_models_come_in_their_order_and_stay_away_once_unloaded(
    stage: Stage,
) -> None:
    two = sized(stage, "a", 60, preload=True), sized(stage, "b", 60, preload=True)
    supervisor = supervised(stage, *two, min_residency_s=10)
    async with running(supervisor):
        await settled(supervisor, "a", S.READY)
        supervisor.unload(A)
        await settled(supervisor, "b", S.READY)
        supervisor.unload(B)
        await settled(supervisor, "b", S.COLD)
        await look(supervisor, *two)
        assert states(supervisor) == {"a": S.COLD, "b": S.COLD}


async def test_a_demand_that_is_not_renewed_is_forgotten(stage: Stage) -> None:
    two = sized(stage, "a", 60), sized(stage, "b", 60)
    supervisor = supervised(stage, *two)
    async with running(supervisor):
        await supervisor.ensure_ready(A, 5)
        supervisor.residency.min_residency_s = 1000
        with pytest.raises(ModelLoading):
            await supervisor.ensure_ready(B, 0)
        stage.clock.now += 61
        await look(supervisor, *two)
        stage.clock.now += 1000
        await look(supervisor, *two)
        assert states(supervisor) == {"a": S.READY, "b": S.COLD}


async def test_a_failed_worker_holds_nothing_and_gets_its_memory_again(stage: Stage) -> None:
    stage.rule = FailureRule(first_s=0.01)
    supervisor = supervised(stage, sized(stage, "a", 60))
    async with running(supervisor):
        await supervisor.ensure_ready(A, 5)
        stage.launcher.processes[0].end(-9)
        await settled(supervisor, "a", S.BACKOFF)
        await look(supervisor, sized(stage, "a", 60))
        assert supervisor.residency.ledger.held == {}
        stage.clock.now += 0.02
        await settled(supervisor, "a", S.READY)


async def test_what_was_measured_replaces_the_estimate(stage: Stage) -> None:
    plain = stage.deployment("a")
    supervisor = supervised(stage, plain)
    async with running(supervisor):
        await supervisor.ensure_ready(A, 5)
        assert supervisor.residency.ledger.held == {A: 96}
        supervisor.residency.ledger.set_budget(200)
        supervisor.residency.measured(A, 98)
        assert supervisor.residency.ledger.held == {A: 98}
        supervisor.residency.measured(A, 20)
        supervisor.unload(A)
        await settled(supervisor, "a", S.COLD)
        await supervisor.ensure_ready(A, 5)
        assert supervisor.residency.ledger.held == {A: 103}
