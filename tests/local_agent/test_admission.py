"""Who is let through to a worker, who waits, and who is sent away: with fakes, by a clock set by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.lowlevel

from local_agent.domain import Deployment, ModelId, WorkerState
from local_agent.errors import WorkerGone
from local_agent.supervisor import Supervisor
from shared.http.errors import (
    ApiError,
    ModelLoading,
    ModelNotFound,
    QueueFull,
    QueueTimeout,
    Unavailable,
)

if TYPE_CHECKING:
    from tests.local_agent.conftest import Stage

S = WorkerState
M = ModelId("m")


class Client:
    """One request: it waits, holds its slot until `finish`, and ends once."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.name = name
        self.error: ApiError | None = None
        self.scope = anyio.CancelScope()
        self._scene = scene
        self._finish = anyio.Event()

    async def run(self, model: ModelId, **wishes: float) -> None:
        with self.scope:
            try:
                place = await self._scene.supervisor.admission.admit(
                    model, **{"load_wait_s": 60.0, **wishes}  # type: ignore[arg-type]
                )
            except ApiError as error:
                self.error = error
                return
            with place:
                self._scene.served.append(self.name)
                await self._finish.wait()

    def finish(self) -> None:
        self._finish.set()


class Scene:
    """A supervisor that runs, and clients."""

    def __init__(self, stage: Stage, supervisor: Supervisor, group: anyio.abc.TaskGroup) -> None:
        self.stage = stage
        self.supervisor = supervisor
        self.served: list[str] = []
        self._group = group

    async def ask(self, name: str, model: ModelId = M, **wishes: float) -> Client:
        """Let a client ask, and go as far as it gets."""
        client = Client(self, name)

        async def run() -> None:
            await client.run(model, **wishes)

        self._group.start_soon(run)
        await self.rest()
        return client

    async def rest(self) -> None:
        """Let everybody do what there is to do."""
        for _ in range(12):
            await anyio.lowlevel.checkpoint()

    async def pass_time(self, seconds: float) -> None:
        self.stage.clock.now += seconds
        self.supervisor.residency.measured(M, 0)
        self.supervisor.reset(M)  # makes the loop look at the clock, which nobody tells it of
        await self.rest()

    async def until(self, state: WorkerState) -> None:
        with anyio.fail_after(5):
            while [view.state for view in self.supervisor.workers()] != [state]:
                await anyio.sleep(0.001)
        await self.rest()

    def load(self) -> tuple[int, int]:
        (view,) = self.supervisor.workers()
        return view.in_flight, view.waiting


def slotted(stage: Stage, slots: int = 1, **more: object) -> Deployment:
    deployment = stage.deployment(preload=True, options={"slots": str(slots)})
    return replace(deployment, **{"max_queue": 3, "queue_max_wait_s": 10.0, **more})  # type: ignore[arg-type]


@asynccontextmanager
async def scene(stage: Stage, *deployments: Deployment, is_up: bool = True) -> AsyncIterator[Scene]:
    """Run a supervisor whose only model is ready, unless it is not `is_up`."""
    stage.limit(health_every_s=0.05)
    stage.prober.is_up = is_up
    supervisor = stage.supervisor(*(deployments or (slotted(stage),)))
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        playing = Scene(stage, supervisor, group)
        if is_up:
            await playing.until(S.READY)
        yield playing
        group.cancel_scope.cancel()


async def test_slots_are_given_in_turn_and_never_more_than_there_are(stage: Stage) -> None:
    async with scene(stage, slotted(stage, slots=2)) as play:
        clients = [await play.ask(name) for name in "abcd"]
        assert play.served == ["a", "b"]
        assert play.load() == (2, 2)
        for client in clients:
            client.finish()
            await play.rest()
            assert play.load()[0] <= 2
        assert play.served == ["a", "b", "c", "d"]
        assert play.load() == (0, 0)


async def test_a_server_of_somebody_else_has_no_limit_unless_one_is_set(stage: Stage) -> None:
    outside = stage.deployment(engine="external", external_url="http://127.0.0.1:1")
    async with scene(stage, outside, is_up=False) as play:
        stage.prober.is_up = True
        await play.until(S.EXTERNAL)
        for name in "abcde":
            await play.ask(name)
        assert play.load() == (5, 0)
        play.supervisor.set_desired([replace(outside, external_parallel=6)])
        await play.ask("f")
        await play.ask("g")
        assert play.load() == (6, 1)
        play.supervisor.set_desired([outside])
        await play.rest()
        assert play.load() == (7, 0), "without the limit nobody waits"


async def test_beyond_the_queue_it_is_429_at_once_with_the_time(stage: Stage) -> None:
    async with scene(stage) as play:
        first = await play.ask("a")
        stage.clock.now += 8
        first.finish()
        await play.rest()
        seen = play.supervisor.version
        clients = [await play.ask(name) for name in "abcde"]
        assert play.load() == (1, 3)
        (error,) = (client.error for client in clients if client.error)
        assert isinstance(error, QueueFull)
        assert (error.status, error.code, error.retry_after_s) == (429, "queue_full", 32.0)
        assert "3 requests wait for model m already" in error.message
        assert play.supervisor.version > seen, "the router hears of a full queue at once"


async def test_who_waits_for_too_long_hears_so(stage: Stage) -> None:
    async with scene(stage) as play:
        await play.ask("a")
        patient, hurried = await play.ask("b"), await play.ask("c", wait_s=3)
        await play.pass_time(3)
        assert isinstance(hurried.error, QueueTimeout)
        assert (hurried.error.status, hurried.error.code) == (503, "queue_timeout")
        assert hurried.error.retry_after_s == 1
        await play.pass_time(6.9)
        assert play.load() == (1, 1)
        await play.pass_time(0.2)
        assert isinstance(patient.error, QueueTimeout)
        assert play.load() == (1, 0)


async def test_the_loop_notices_by_itself_when_a_wait_is_over(stage: Stage) -> None:
    async with scene(stage, slotted(stage, queue_max_wait_s=0.02)) as play:
        await play.ask("a")
        late = await play.ask("b")
        stage.clock.now += 0.03  # the loop sleeps by real time, and looks at this clock
        with anyio.fail_after(5):
            while late.error is None:
                await anyio.sleep(0.005)
        assert isinstance(late.error, QueueTimeout)
        assert play.load() == (1, 0)


async def test_who_does_not_wait_is_told_at_once(stage: Stage) -> None:
    async with scene(stage) as play:
        await play.ask("a")
        other = await play.ask("b", wait_s=0)
        assert isinstance(other.error, QueueTimeout)
        assert play.load() == (1, 0)


async def test_a_load_is_begun_for_who_does_not_wait_and_its_progress_told(stage: Stage) -> None:
    cold = slotted(stage, preload=False)
    async with scene(stage, cold, is_up=False) as play:
        first = await play.ask("a", wait_s=0)
        assert isinstance(first.error, ModelLoading)
        await play.until(S.LOADING)
        stage.clock.now += 0.5
        second = await play.ask("b", wait_s=0)
        assert isinstance(second.error, ModelLoading)
        error = json.loads(second.error.body())["error"]
        assert error["progress"] == {
            "phase": "loading",
            "elapsed_s": 0.5,
            "expected_s": 2.0,
            "fraction": 0.25,
        }
        assert (error["code"], second.error.retry_after_s) == ("model_loading", 1.5)
        assert error.keys() >= {"message", "type", "param", "code"}


async def test_more_priority_goes_first_and_takes_the_place_of_less(stage: Stage) -> None:
    async with scene(stage) as play:
        running = await play.ask("a")
        low = await play.ask("low", priority=-1)
        others = [await play.ask(name) for name in "bc"]
        high = await play.ask("high", priority=1)
        assert isinstance(low.error, QueueFull)
        for client in (running, high, *others):
            client.finish()
            await play.rest()
        assert play.served == ["a", "high", "b", "c"]


async def test_who_leaves_the_queue_or_a_slot_frees_it(stage: Stage) -> None:
    async with scene(stage) as play:
        first, second, third = [await play.ask(name) for name in "abc"]
        second.scope.cancel()
        await play.rest()
        assert play.load() == (1, 1)
        first.scope.cancel()
        await play.rest()
        assert play.served == ["a", "c"]
        assert play.load() == (1, 0)
        third.finish()
        await play.rest()
        assert play.load() == (0, 0)


async def test_a_slot_that_was_given_to_who_has_just_left_goes_on(stage: Stage) -> None:
    async with scene(stage) as play:
        first = await play.ask("a")
        second = asyncio.create_task(play.supervisor.admission.admit(M, load_wait_s=60))
        await play.rest()
        third = await play.ask("c")
        first.finish()
        with anyio.fail_after(5):
            while play.load() == (1, 2):
                await anyio.lowlevel.checkpoint()
        assert not second.done(), "it has the slot, and does not know yet"
        second.cancel()
        await play.rest()
        assert second.cancelled()
        assert play.served == ["a", "c"]
        third.finish()
        await play.rest()
        assert play.load() == (0, 0)


async def test_who_leaves_during_a_load_leaves_nothing_behind(stage: Stage) -> None:
    async with scene(stage, is_up=False) as play:
        gone, stays = await play.ask("a"), await play.ask("b")
        assert play.load() == (0, 2)
        gone.scope.cancel()
        await play.rest()
        assert play.load() == (0, 1)
        stage.prober.is_up = True
        await play.until(S.READY)
        assert play.served == ["b"]
        stays.finish()
        await play.rest()
        assert play.load() == (0, 0)


async def test_each_who_waits_for_a_load_that_fails_gets_an_error_of_its_own(stage: Stage) -> None:
    async with scene(stage, is_up=False) as play:
        clients = [await play.ask(name) for name in "abc"]
        await play.until(S.LOADING)
        stage.launcher.processes[0].end(1, "out of memory")
        await play.until(S.BACKOFF)
        errors = [client.error for client in clients]
        assert all(isinstance(error, WorkerGone) for error in errors)
        assert len({id(error) for error in errors}) == 3
        assert play.load() == (0, 0)


async def test_a_removed_model_and_a_stopping_agent_let_nobody_wait(stage: Stage) -> None:
    async with scene(stage) as play:
        running, waiting = await play.ask("a"), await play.ask("b")
        play.supervisor.set_desired([])
        await play.rest()
        assert isinstance(waiting.error, ModelNotFound)
        running.finish()
    async with scene(stage) as play:
        running, waiting = await play.ask("a"), await play.ask("b")
        async with anyio.create_task_group() as group:
            group.start_soon(play.supervisor.drain_and_stop, 60)
            await play.rest()
            assert isinstance(waiting.error, Unavailable)
            assert waiting.error.message == "the agent is stopping"
            running.finish()


async def test_a_crash_lets_those_wait_on_who_were_not_sent_yet(stage: Stage) -> None:
    """They hear of the failure; whoever comes once it is up again is served."""
    stage.rule = replace(stage.rule, first_s=0.01)
    async with scene(stage) as play:
        running, waiting = await play.ask("a"), await play.ask("b")
        stage.launcher.processes[0].end(-9)
        await play.until(S.BACKOFF)
        assert isinstance(waiting.error, WorkerGone)
        running.finish()
        stage.clock.now += 0.02
        await play.until(S.READY)
        await play.ask("c")
        assert play.served == ["a", "c"]


async def test_the_load_inside_the_engine_is_seen(stage: Stage) -> None:
    stage.prober.metrics = (
        '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine="0"} 4.0\n'
        'vllm:num_requests_waiting{engine="0"} 3.0\n'
    )
    async with scene(stage) as play:
        with anyio.fail_after(5):
            while play.supervisor.workers()[0].running != 4:
                await anyio.sleep(0.005)
        (view,) = play.supervisor.workers()
        assert (view.in_flight, view.running, view.waiting) == (0, 4, 3)
        assert stage.prober.asked_load[0] == "http://127.0.0.1:4321/metrics"
        stage.prober.metrics = None
        with anyio.fail_after(5):
            while play.supervisor.workers()[0].running:
                await anyio.sleep(0.005)


async def test_an_engine_that_never_tells_its_load_is_left_alone(stage: Stage) -> None:
    async with scene(stage) as play:
        with anyio.fail_after(5):
            while len(stage.prober.asked_load) < 3:
                await anyio.sleep(0.005)
        asked = len(stage.prober.asked) + 5
        with anyio.fail_after(5):
            while len(stage.prober.asked) < asked:
                await anyio.sleep(0.005)
        assert len(stage.prober.asked_load) == 3
        assert play.load() == (0, 0)
