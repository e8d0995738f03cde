"""Jobs without any download: who joins, who waits, what is told at the end."""

from __future__ import annotations

import asyncio

from local_agent.desired import PullMarks
from local_agent.domain import ModelId
from local_agent.pulls.jobs import JobState, JobView, PullJobs
from local_agent.pulls.puller import Pulled
from local_agent.weights.errors import NotEnoughSpace
from local_agent.weights.progress import OnProgress, Phase, Progress

A, B, C = ModelId("a"), ModelId("b"), ModelId("c")
HALF = Progress(
    phase=Phase.DOWNLOADING, source="hf:x", bytes_done=1, bytes_total=2, rate_bps=None, eta_s=None
)


class Stage:
    def __init__(self) -> None:
        self.started: list[ModelId] = []
        self.looked = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None
        self.clearing = asyncio.Event()
        self.cleared = 0
        self.clears: list[ModelId] = []
        self.marks = PullMarks(lambda: None)
        self.jobs = PullJobs(self.pull, self.marks, self.look)

    async def pull(self, model: ModelId, on_progress: OnProgress) -> Pulled:
        self.started.append(model)
        on_progress(HALF)
        try:
            await self.go.wait()
        finally:
            if model in self.clears:
                await self.clearing.wait()
                self.cleared += 1
        if self.error is not None:
            raise self.error
        return Pulled(place="there", size_bytes=2)

    def look(self) -> None:
        self.looked += 1

    async def watch(self, model: ModelId) -> list[JobView]:
        return [view async for view in self.jobs.follow(model)]


async def test_two_asks_are_one_pull_and_both_see_it_to_the_end() -> None:
    stage = Stage()
    stage.jobs.start(A)
    watchers = [asyncio.create_task(stage.watch(A)) for _ in range(2)]
    await asyncio.sleep(0.01)
    stage.jobs.start(A)
    assert stage.marks.is_pulling(A)
    stage.go.set()
    for views in await asyncio.gather(*watchers):
        assert [view.state.value for view in views][-2:] == ["running", "done"]
        assert HALF in [view.progress for view in views]
        assert views[-1].result == Pulled(place="there", size_bytes=2)
    assert stage.started == [A]
    assert stage.looked == 1
    assert not stage.marks.is_pulling(A)
    assert await stage.watch(B) == []


async def test_only_so_many_run_at_once() -> None:
    stage = Stage()
    for model in (A, B, C):
        stage.jobs.start(model)
    await asyncio.sleep(0.01)
    assert stage.started == [A, B]
    assert [view.state.value for view in stage.jobs.views()] == ["running", "running", "queued"]
    assert stage.marks.is_pulling(C)
    await stage.jobs.cancel(A)
    await asyncio.sleep(0.01)
    assert stage.started == [A, B, C]
    await stage.jobs.aclose()


async def test_a_failure_is_told_and_can_be_tried_again() -> None:
    stage = Stage()
    stage.error = NotEnoughSpace("not enough")
    stage.go.set()
    stage.jobs.start(A)
    assert (await stage.watch(A))[-1].error == "not enough"
    assert stage.looked == 0
    stage.error = RuntimeError("a defect")
    assert stage.jobs.start(A).state is JobState.QUEUED
    assert (await stage.watch(A))[-1].error == "a defect of the agent; its log says more"
    stage.error = None
    stage.jobs.start(A)
    assert (await stage.watch(A))[-1].state is JobState.DONE


async def test_a_cancelled_job_leaves_no_cause() -> None:
    stage = Stage()
    stage.jobs.start(A)
    await asyncio.sleep(0.01)
    view = await stage.jobs.cancel(A)
    assert view is not None
    assert view.state is JobState.CANCELLED
    assert view.error == "it was stopped; the same command goes on where it was"
    assert not stage.marks.is_pulling(A)
    assert await stage.jobs.cancel(B) is None


async def test_a_model_that_is_configured_no_more_is_not_pulled_on() -> None:
    stage = Stage()
    stage.jobs.start(A)
    stage.jobs.start(B)
    watcher = asyncio.create_task(stage.watch(A))
    await asyncio.sleep(0.01)
    stage.jobs.keep({B})
    assert (await watcher)[-1].state is JobState.CANCELLED
    assert [view.model for view in stage.jobs.views()] == [B]
    await stage.jobs.aclose()


async def test_an_agent_that_ends_takes_no_more() -> None:
    stage = Stage()
    stage.jobs.start(A)
    await asyncio.sleep(0.01)
    await stage.jobs.aclose()
    assert (await stage.watch(A))[-1].error == (
        "the agent was stopped; the same command goes on where it was"
    )
    stage.jobs.start(B)
    assert (await stage.watch(B))[-1].state is JobState.CANCELLED
    assert stage.started == [A]


async def test_a_job_that_clears_away_is_waited_for_and_not_cut_short() -> None:
    stage = Stage()
    stage.clears = [A]
    stage.jobs.start(A)
    await asyncio.sleep(0.01)
    asks = [asyncio.create_task(stage.jobs.cancel(A)) for _ in range(2)]
    closing = asyncio.create_task(stage.jobs.aclose())
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in (*asks, closing))
    stage.clearing.set()
    views = await asyncio.gather(*asks)
    await closing
    assert stage.cleared == 1
    assert [view and view.state for view in views] == [JobState.CANCELLED] * 2


async def test_one_who_no_longer_waits_for_the_end_does_not_stop_the_others() -> None:
    stage = Stage()
    stage.clears = [A]
    stage.jobs.start(A)
    await asyncio.sleep(0.01)
    impatient, patient = (asyncio.create_task(stage.jobs.cancel(A)) for _ in range(2))
    await asyncio.sleep(0.01)
    impatient.cancel()
    await asyncio.sleep(0.01)
    assert not patient.done()
    stage.clearing.set()
    view = await patient
    assert view is not None
    assert view.state is JobState.CANCELLED
    assert stage.cleared == 1


async def test_the_end_of_a_removed_model_s_job_is_not_that_of_its_next() -> None:
    stage = Stage()
    stage.clears = [A]
    stage.jobs.start(A)
    await asyncio.sleep(0.01)
    stage.jobs.keep(())  # removed from the file, and put back
    stage.jobs.start(A)
    stage.clearing.set()
    await asyncio.sleep(0.01)
    assert stage.cleared == 1
    assert stage.started == [A, A]
    assert stage.marks.is_pulling(A)
    stage.go.set()
    assert (await stage.watch(A))[-1].state is JobState.DONE
    assert not stage.marks.is_pulling(A)
