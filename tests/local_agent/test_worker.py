"""One worker with fakes around it: states, causes, and nobody else's process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from local_agent.domain import Deployment, ModelId, Upstream, WorkerState, WorkerStatus
from local_agent.engines import ENGINES
from local_agent.lifecycle import IllegalTransitionError
from local_agent.one_token import generates
from local_agent.worker import Worker
from tests.local_agent.harness import until

if TYPE_CHECKING:
    from tests.local_agent.conftest import Stage

S = WorkerState


class Watched:
    """A worker, and the states it went through."""

    def __init__(self, stage: Stage) -> None:
        self.worker = Worker(ModelId("m"), stage.around(), self._observe)
        self.states: list[WorkerState] = []
        self._changed = anyio.Event()

    def _observe(
        self, model: ModelId, before: WorkerStatus, after: WorkerStatus, request_id: str | None
    ) -> None:
        self.states.append(after.state)
        self._changed.set()

    async def until(self, *states: WorkerState) -> None:
        await self.until_so(lambda: self.worker.status.state in states)

    async def until_so(self, is_so: Callable[[], bool]) -> None:
        with anyio.fail_after(5):
            while not is_so():
                self._changed = anyio.Event()
                await self._changed.wait()

    def upstream(self) -> Upstream | None:
        return self.worker.upstream


@asynccontextmanager
async def begun(stage: Stage, deployment: Deployment | None = None) -> AsyncIterator[Watched]:
    deployment = deployment or stage.deployment()
    watched = Watched(stage)
    engine = ENGINES[deployment.engine]
    watched.worker.begin(deployment)
    async with anyio.create_task_group() as group:
        group.start_soon(watched.worker.live, deployment, engine)
        yield watched
        group.cancel_scope.cancel()


async def test_from_start_to_stop(stage: Stage) -> None:
    async with begun(stage) as watched:
        worker = watched.worker
        assert watched.upstream() is None
        await watched.until(S.READY)
        assert watched.upstream() == Upstream("http://127.0.0.1:4321/v1", "m")
        assert worker.pid == 100
        assert stage.prober.asked[0] == "http://127.0.0.1:4321/health"
        worker.stop()
        assert watched.upstream() is None
        await watched.until(S.COLD)
    assert watched.states == [S.STARTING, S.LOADING, S.READY, S.STOPPING, S.COLD]
    assert stage.launcher.processes[0].graces == [1.5]
    assert worker.pid is None


async def test_an_exit_ends_loading_at_once_with_the_cause(stage: Stage) -> None:
    stage.prober.is_up = False
    async with begun(stage) as watched:
        await watched.until(S.LOADING)
        stage.launcher.processes[0].end(1, "E load: failed to load model '/home/me/w.gguf'")
        await watched.until(S.BACKOFF)
        assert watched.worker.status.reason == (
            "the engine exited with code 1: load: failed to load model 'w.gguf'"
        )


async def test_a_kill_takes_it_out_before_its_remains_are_cleared(stage: Stage) -> None:
    async with begun(stage) as watched:
        await watched.until(S.READY)
        process = stage.launcher.processes[0]
        process.hold_stop = anyio.Event()
        process.end(-9)
        await watched.until(S.STOPPING)
        assert watched.upstream() is None
        process.hold_stop.set()
        await watched.until(S.BACKOFF)
        assert watched.worker.status.reason == "the engine was ended by SIGKILL"


async def test_three_strikes_end_it(stage: Stage) -> None:
    async with begun(stage) as watched:
        await watched.until(S.READY)
        stage.prober.is_up = False
        asked = len(stage.prober.asked)
        await watched.until(S.BACKOFF)
        assert len(stage.prober.asked) - asked == 3
        assert watched.worker.status.reason == "it failed its health check 3 times in a row"
    assert stage.launcher.alive() == []


async def test_loading_has_a_limit_that_grows_with_the_weights(
    stage: Stage, tmp_path: Path
) -> None:
    weights = tmp_path / "m.gguf"
    with weights.open("wb") as file:
        file.truncate(1024**3)  # sparse
    stage.prober.is_up = False
    stage.limit(loading_s=0.0, loading_s_per_gib=0.4)
    async with begun(stage, stage.deployment(weights=weights)) as watched:
        await watched.until(S.BACKOFF)
        assert watched.worker.status.reason == "it was not ready within 0 s"
        assert len(stage.prober.asked) > 1
    missing = stage.deployment(weights=tmp_path / "gone.gguf")
    async with begun(stage, missing) as watched:
        await watched.until(S.BACKOFF)


async def test_a_program_that_can_not_be_started(stage: Stage) -> None:
    stage.launcher.error = FileNotFoundError(2, "No such file or directory", "/home/me/python")
    async with begun(stage) as watched:
        await watched.until(S.BACKOFF)
        assert watched.worker.status.reason == (
            "the engine can't be started: No such file or directory"
        )
    assert watched.states == [S.STARTING, S.STOPPING, S.BACKOFF]


async def test_a_stop_during_the_start_is_no_failure(stage: Stage) -> None:
    async with begun(stage) as watched:
        watched.worker.stop()
        await watched.until(S.COLD)
        assert watched.worker.status.failures == ()
    assert stage.launcher.alive() == []


async def test_cancellation_leaves_no_process(stage: Stage) -> None:
    async with begun(stage) as watched:
        await watched.until(S.READY)
    assert watched.states[-2:] == [S.STOPPING, S.COLD]
    assert stage.launcher.alive() == []


async def test_a_drain_takes_nothing_new_and_a_crash_in_it_is_a_failure(stage: Stage) -> None:
    async with begun(stage) as watched:
        await watched.until(S.READY)
        watched.worker.line.take()
        watched.worker.drain("why")
        assert watched.upstream() is None
        assert watched.worker.status.in_flight == 1
        stage.launcher.processes[0].end(1)
        await watched.until(S.BACKOFF)


async def test_an_external_server_comes_goes_and_comes_back(stage: Stage) -> None:
    stage.prober.is_up = False
    outside = stage.deployment(engine="external", external_url="http://127.0.0.1:11434/v1/")
    async with begun(stage, outside) as watched:
        await watched.until(S.LOADING)
        await watched.until_so(lambda: watched.worker.status.reason is not None)
        assert watched.worker.status.reason == "the external server does not answer"
        said = len(watched.states)
        await anyio.sleep(0.01)
        assert len(watched.states) == said, "news are told once"
        stage.prober.is_up = True
        await watched.until(S.EXTERNAL)
        assert watched.upstream() == Upstream("http://127.0.0.1:11434/v1", "m")
        stage.prober.is_up = False
        await watched.until(S.LOADING)
        assert watched.upstream() is None
        watched.worker.stop()
        await watched.until(S.COLD)
    assert set(stage.prober.asked) == {"http://127.0.0.1:11434/v1/models"}
    assert stage.launcher.launched == []


async def test_it_is_not_started_twice(stage: Stage) -> None:
    async with begun(stage) as watched:
        with pytest.raises(IllegalTransitionError):
            watched.worker.begin(stage.deployment())


async def test_one_that_says_it_is_well_and_generates_nothing_is_ended(stage: Stage) -> None:
    prober = stage.prober
    prober.generates = False
    async with begun(stage) as watched:
        await watched.until(S.READY)
        await until(lambda: len(prober.asked) > 20)
        assert prober.asked_for_tokens == [], "it has not been idle for long"
        watched.worker.line.take()
        stage.clock.now += 60
        await until(lambda: len(prober.asked) > 40)
        assert prober.asked_for_tokens == [], "a busy one is not asked: it would queue"
        watched.worker.line.leave(None)
        stage.clock.now += 60
        await watched.until(S.BACKOFF)
        reason = "it generated nothing when it was asked to 3 times in a row"
        assert watched.worker.status.reason == reason
    url, body = prober.asked_for_tokens[0]
    assert url == "http://127.0.0.1:4321/v1/completions"
    assert json.loads(body) == {"model": "m", "prompt": "a", "max_tokens": 1}
    assert len(prober.asked_for_tokens) == 3


async def test_one_that_generates_is_asked_once_a_minute(stage: Stage) -> None:
    async with begun(stage, stage.deployment(options={"persona": "openai"})) as watched:
        await watched.until(S.READY)
        for count in (1, 2):
            stage.clock.now += 60
            asked = len(stage.prober.asked) + 20
            await until(partial(stage.has_asked, asked))
            assert len(stage.prober.asked_for_tokens) == count
        assert watched.worker.status.state is S.READY


async def test_what_generates_nothing_by_nature_is_not_asked(stage: Stage) -> None:
    upstream = Upstream("http://127.0.0.1:1/v1", "m")
    assert await generates(stage.prober, upstream, ("embeddings",), 1)
    assert stage.prober.asked_for_tokens == []
    assert await generates(stage.prober, upstream, ("chat",), 1)
    assert stage.prober.asked_for_tokens[0][0] == "http://127.0.0.1:1/v1/chat/completions"


async def test_memory_that_did_not_come_back_is_told(stage: Stage) -> None:
    async with begun(stage) as watched:
        await watched.until(S.READY)
        stage.launcher.processes[0].left = "leaked: why"
        watched.worker.stop()
        await watched.until(S.COLD)
        assert watched.worker.status.reason == "leaked: why"
    async with begun(stage) as watched:
        await watched.until(S.READY)
        stage.launcher.processes[1].left = "leaked: why"
        stage.launcher.processes[1].end(3)
        await watched.until(S.BACKOFF)
        assert watched.worker.status.reason == "the engine exited with code 3; leaked: why"
