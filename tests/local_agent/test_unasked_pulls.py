"""Weights that the agent pulls by itself: until they are there, and not against anybody's word."""

from __future__ import annotations

import asyncio

from local_agent.catalog import Entry
from local_agent.desired import PullMarks
from local_agent.domain import Deployment, ModelId
from local_agent.pulls.jobs import PullJobs
from local_agent.pulls.puller import Pulled
from local_agent.pulls.unasked import UnaskedPulls
from local_agent.weights.errors import SourceUnreachable
from local_agent.weights.progress import OnProgress
from tests.local_agent.harness import until


class Stage:
    """An agent's models, whose pulls end as they are told to."""

    def __init__(self, *models: str) -> None:
        self.there = dict.fromkeys(models, False)
        self.started: list[str] = []
        self.failures = 0
        self.waits: list[float] = []
        self.go = asyncio.Event()
        self.go.set()
        self.held = ""  # this one waits for `go`; all do, if it is empty
        self.jobs = PullJobs(self.pull, PullMarks(lambda: None), lambda: None)

    def resolve(self, name: str) -> ModelId | None:
        name = {"default": "small"}.get(name, name)
        return ModelId(name) if name in self.there else None

    def entry(self, model: ModelId) -> Entry | None:
        deployment = Deployment(model=model, engine="llama_cpp")
        return Entry(deployment=deployment, engine=None, is_pulled=self.there[model], problem=None)

    async def pull(self, model: ModelId, on_progress: OnProgress) -> Pulled:
        self.started.append(model)
        if self.held in {"", model}:
            await self.go.wait()
        if self.failures:
            self.failures -= 1
            raise SourceUnreachable("the index can't be reached")
        self.there[model] = True
        return Pulled(place="there", size_bytes=1)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(0)

    async def run(self, *names: str) -> None:
        pulls = UnaskedPulls(names, self, self.jobs, sleep=self.sleep)
        await asyncio.wait_for(pulls.run(), 5)


async def test_what_is_missing_is_pulled_once_and_what_is_there_is_not() -> None:
    stage = Stage("small", "big", "here")
    stage.there["here"] = True
    await stage.run("default", "big", "here", "big")
    assert sorted(stage.started) == ["big", "small"]
    assert stage.waits == []


async def test_a_pull_that_fails_is_tried_again_ever_more_rarely() -> None:
    stage = Stage("small")
    stage.failures = 8
    await stage.run("small")
    assert stage.started == ["small"] * 9
    assert stage.waits == sorted(stage.waits)
    assert 10 <= stage.waits[0] < stage.waits[1]
    assert stage.waits[-2:] == [600, 600]
    assert stage.there["small"]


async def test_a_pull_that_somebody_stops_is_left_alone() -> None:
    stage = Stage("small")
    stage.go.clear()
    running = asyncio.create_task(stage.run("small"))
    await until(lambda: stage.started)
    await stage.jobs.cancel(ModelId("small"))
    await running
    assert stage.started == ["small"]
    assert not stage.there["small"]


async def test_a_name_that_comes_later_is_pulled_then() -> None:
    stage = Stage("small")

    async def sleep(seconds: float) -> None:
        stage.there.setdefault("later", False)
        await asyncio.sleep(0)

    pulls = UnaskedPulls(["later", "small"], stage, stage.jobs, sleep=sleep)
    await asyncio.wait_for(pulls.run(), 5)
    assert stage.started == ["small", "later"]


async def test_without_names_nothing_happens() -> None:
    stage = Stage("small")
    await stage.run()
    assert stage.started == []


async def test_nobody_waits_for_the_longest_pull() -> None:
    stage = Stage("big", "small")
    stage.go.clear()
    stage.held, stage.failures = "big", 2
    running = asyncio.create_task(stage.run("big", "small"))
    await until(lambda: stage.there["small"])
    assert stage.started == ["big", "small", "small", "small"]
    stage.go.set()
    await running
    assert stage.there["big"]


async def test_a_name_that_goes_and_comes_back_is_pulled_then() -> None:
    stage = Stage("small")
    stage.go.clear()
    running = asyncio.create_task(stage.run("small"))
    await until(lambda: bool(stage.started))
    del stage.there["small"]
    stage.jobs.keep(())
    await until(lambda: len(stage.waits) > 3)
    assert set(stage.waits) == {15.0}  # to look for a name costs nothing
    stage.there["small"] = False
    stage.go.set()
    await running
    assert stage.started == ["small", "small"]
    assert stage.there["small"]
