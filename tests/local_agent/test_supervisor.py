"""The supervisor with fakes around it, as its callers see it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from local_agent.domain import ModelId, Upstream, WorkerEvent, WorkerState
from local_agent.engines import ENGINES
from local_agent.errors import WorkerGone
from local_agent.lifecycle import FailureRule
from local_agent.ports import ContainerError
from local_agent.supervisor import Supervisor
from shared.contracts.apis import APIS
from shared.http.errors import ModelLoading, ModelNotFound, ModelNotPulled, Unavailable
from tests.local_agent.residency import running, until

if TYPE_CHECKING:
    from tests.local_agent.conftest import Stage

S = WorkerState
M = ModelId("m")


def state(supervisor: Supervisor, model: str = "m") -> WorkerState | None:
    return next((view.state for view in supervisor.workers() if view.model == model), None)


async def settled(supervisor: Supervisor, wanted: WorkerState | None, model: str = "m") -> None:
    await until(supervisor, lambda: state(supervisor, model) is wanted)


def statuses(supervisor: Supervisor) -> dict[str, str]:
    return {model.id: model.status for model in supervisor.models()}


async def test_preloaded_models_start_with_the_agent_and_others_on_demand(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.deployment("now", preload=True), stage.deployment("later"))
    assert statuses(supervisor) == {"now": "unloaded", "later": "unloaded"}
    async with running(supervisor):
        await settled(supervisor, S.READY, "now")
        assert statuses(supervisor) == {"now": "loaded", "later": "unloaded"}
        with await supervisor.admission.admit(
            ModelId("later"), load_wait_s=5, request_id="req-1"
        ) as place:
            assert place.upstream == Upstream("http://127.0.0.1:4321/v1", "later")
        assert statuses(supervisor) == {"now": "loaded", "later": "loaded"}
        starts = [event for event in supervisor.events() if event.to_state is S.STARTING]
        assert [(event.worker, event.request_id) for event in starts] == [
            ("now", None),
            ("later", "req-1"),
        ]
    assert stage.launcher.reaped == 1
    assert stage.launcher.alive() == []


async def test_many_requests_join_one_load(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.deployment())
    found: list[Upstream] = []

    async def ask() -> None:
        found.append(await supervisor.ensure_ready(M, 5))

    async with running(supervisor), anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(ask)
    assert len(found) == 20
    assert len(stage.launcher.launched) == 1


async def test_a_load_that_takes_longer_than_the_caller_waits(stage: Stage) -> None:
    stage.prober.is_up = False
    supervisor = stage.supervisor(stage.deployment())
    async with running(supervisor):
        with pytest.raises(ModelLoading, match="model m is loading, for 0 s so far") as raised:
            await supervisor.ensure_ready(M, 0)
        assert raised.value.retry_after_s == 2
        await settled(supervisor, S.LOADING)
        stage.clock.now += 1.5
        with pytest.raises(ModelLoading, match="for 2 s so far") as raised:
            await supervisor.ensure_ready(M, 0.005)
        assert raised.value.retry_after_s == 1
        assert statuses(supervisor) == {"m": "loading"}
        stage.prober.is_up = True
        await supervisor.ensure_ready(M, 5)
        assert supervisor.workers()[0].expected_load_s == 1.5


async def test_without_a_running_loop_a_request_still_gets_an_answer(stage: Stage) -> None:
    with pytest.raises(ModelLoading):
        await stage.supervisor(stage.deployment()).ensure_ready(M, 0.001)


async def test_unknown_models_are_404(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.deployment("m", aliases=("default", "other")))
    assert supervisor.resolve("default") == supervisor.resolve("m") == "m"
    assert supervisor.resolve("nobody") is None
    with pytest.raises(ModelNotFound, match="no model 'nobody'"):
        await supervisor.ensure_ready(ModelId("nobody"), 0)
    with pytest.raises(ModelNotFound):
        await supervisor.admission.admit(ModelId("nobody"), load_wait_s=0)
    with pytest.raises(ModelNotFound):
        supervisor.reset(ModelId("nobody"))


def test_an_id_wins_over_an_alias_and_the_first_alias_over_a_later(stage: Stage) -> None:
    supervisor = stage.supervisor(
        stage.deployment("a", aliases=("b", "x")), stage.deployment("b", aliases=("x",))
    )
    assert supervisor.resolve("b") == "b"
    assert supervisor.resolve("x") == "a"


async def test_weights_that_are_not_pulled_are_404_with_the_command(
    stage: Stage, tmp_path: Path
) -> None:
    stage.host = replace(stage.host, modules=frozenset({"xllamacpp"}))
    absent = stage.deployment("org/big model", engine="auto", preload=True)
    supervisor = stage.supervisor(absent)
    async with running(supervisor):
        await settled(supervisor, S.UNAVAILABLE, absent.model)
        with pytest.raises(ModelNotPulled, match="run: iir-agent pull 'org/big model'"):
            await supervisor.ensure_ready(absent.model, 5)
        (model,) = supervisor.models()
        assert (model.status, model.is_pulled, model.engine) == ("unloaded", False, "llama_cpp")
        assert (model.apis, model.max_in_flight) == (None, None)  # nobody asks it yet
        assert model.pull_command == "iir-agent pull 'org/big model'"
        weights = tmp_path / "w.gguf"
        weights.write_bytes(b"GGUF")
        supervisor.set_desired([replace(absent, weights=weights)])
        assert statuses(supervisor) == {absent.model: "unloaded"}
        (model,) = supervisor.models()
        assert (model.apis, model.max_in_flight) == (APIS, 2)
        await settled(supervisor, S.READY, absent.model)
        supervisor.set_desired([absent])
        await settled(supervisor, S.UNAVAILABLE, absent.model)
    assert stage.launcher.alive() == []


@pytest.mark.parametrize(
    ("engine", "words"),
    [("llama_cpp", "with its extra `llama`"), ("warp", "unknown engine 'warp'; known: external")],
)
async def test_an_engine_that_can_not_run_here_is_said_so(
    stage: Stage, tmp_path: Path, engine: str, words: str
) -> None:
    supervisor = stage.supervisor(
        stage.deployment(engine=engine, weights=tmp_path / "m.gguf", preload=True)
    )
    async with running(supervisor):
        await settled(supervisor, S.UNAVAILABLE)
        with pytest.raises(Unavailable, match=words) as raised:
            await supervisor.ensure_ready(M, 5)
        assert ("x-should-retry", "false") in raised.value.headers
        assert statuses(supervisor) == {"m": "failed"}
    assert stage.launcher.launched == []


async def test_a_killed_worker_comes_back_after_its_backoff(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.deployment(preload=True))
    async with running(supervisor):
        await settled(supervisor, S.READY)
        stage.launcher.processes[0].end(-9)
        await settled(supervisor, S.BACKOFF)
        words = (
            r"ended by SIGKILL\); next start in \d+ s: ask again then; `iir-agent ps` shows why$"
        )
        with pytest.raises(WorkerGone, match=words) as raised:
            await supervisor.ensure_ready(M, 5)
        assert raised.value.code == "worker_gone"
        assert raised.value.retry_after_s is not None
        assert 8 <= raised.value.retry_after_s <= 12
        assert statuses(supervisor) == {"m": "failed"}
        stage.clock.now += 12
        with await supervisor.admission.admit(M, load_wait_s=5):
            pass  # its end wakes the loop
        await supervisor.ensure_ready(M, 5)
    assert len(stage.launcher.processes) == 2


async def test_backoff_ends_by_itself(stage: Stage) -> None:
    stage.rule = FailureRule(first_s=0.01)
    supervisor = stage.supervisor(stage.deployment(preload=True))
    async with running(supervisor):
        await settled(supervisor, S.READY)
        stage.launcher.processes[0].end(-9)
        await settled(supervisor, S.BACKOFF)
        stage.clock.now += 0.02  # the loop sleeps by real time, and plans by this clock
        await settled(supervisor, S.READY)
        assert len(stage.launcher.processes) == 2


async def test_what_is_not_the_worker_s_fault_is_tried_for_ever(stage: Stage) -> None:
    stage.rule = FailureRule(first_s=0.001, quarantine_at=2)
    stage.launcher.error = ContainerError("the container engine is away", is_unreachable=True)
    supervisor = stage.supervisor(stage.deployment(preload=True))

    def tried_after(tries: int) -> bool:
        return len(stage.launcher.launched) > tries

    async with running(supervisor):
        for _ in range(5):
            tries = len(stage.launcher.launched)
            stage.clock.now += 1
            await until(supervisor, partial(tried_after, tries))
            await settled(supervisor, S.BACKOFF)
        stage.launcher.error = None
        stage.clock.now += 1
        await supervisor.ensure_ready(M, 5)
    reasons = {event.reason for event in supervisor.events() if event.to_state is S.BACKOFF}
    assert reasons == {"the engine can't be started: the container engine is away"}


async def test_a_crash_loop_is_quarantined_until_reset_or_a_new_configuration(
    stage: Stage,
) -> None:
    stage.rule = FailureRule(quarantine_at=1)
    stage.launcher.error = OSError(12, "Cannot allocate memory")
    deployment = stage.deployment(preload=True)
    supervisor = stage.supervisor(deployment)
    async with running(supervisor):
        await settled(supervisor, S.QUARANTINED)
        says = r"quarantined .*Cannot allocate.*iir-agent reset m"
        with pytest.raises(Unavailable, match=says) as raised:
            await supervisor.ensure_ready(M, 5)
        assert ("x-should-retry", "false") in raised.value.headers
        stage.launcher.error = None
        supervisor.reset(M)
        await supervisor.ensure_ready(M, 5)
        supervisor.reset(M)
        assert state(supervisor) is S.READY
        stage.launcher.processes[0].end(1)
        await settled(supervisor, S.QUARANTINED)
        supervisor.set_desired([replace(deployment, context_tokens=99)])
        await supervisor.ensure_ready(M, 5)


async def test_a_failed_load_is_told_to_who_waits(stage: Stage) -> None:
    stage.prober.is_up = False
    supervisor = stage.supervisor(stage.deployment())
    async with running(supervisor), anyio.create_task_group() as group:

        async def ask() -> None:
            with pytest.raises(
                Unavailable, match=r"model m failed \(the engine exited with code 7"
            ):
                await supervisor.ensure_ready(M, 5)

        group.start_soon(ask)
        await settled(supervisor, S.LOADING)
        stage.launcher.processes[0].end(7)


async def test_a_new_configuration_restarts_an_idle_worker_at_once(stage: Stage) -> None:
    deployment = stage.deployment(preload=True)
    supervisor = stage.supervisor(deployment)
    async with running(supervisor):
        await settled(supervisor, S.READY)
        supervisor.set_desired([replace(deployment, aliases=("x",))])
        await supervisor.ensure_ready(M, 5)
        assert len(stage.launcher.launched) == 1, "an alias needs no restart"
        supervisor.set_desired([replace(deployment, context_tokens=99)])
        await until(supervisor, lambda: len(stage.launcher.launched) == 2)
        await settled(supervisor, S.READY)


async def test_a_busy_worker_drains_first(stage: Stage) -> None:
    deployment = stage.deployment(preload=True)
    supervisor = stage.supervisor(deployment)
    async with running(supervisor):
        await settled(supervisor, S.READY)
        with await supervisor.admission.admit(M, load_wait_s=5):
            supervisor.set_desired([replace(deployment, context_tokens=99)])
            await settled(supervisor, S.DRAINING)
            with pytest.raises(ModelLoading):
                await supervisor.ensure_ready(M, 0.001)
            assert len(stage.launcher.alive()) == 1
            assert [view.in_flight for view in supervisor.workers()] == [1]
        await until(supervisor, lambda: len(stage.launcher.launched) == 2)
        await supervisor.ensure_ready(M, 5)


async def test_a_removed_model_is_unknown_at_once_and_forgotten_after_its_work(
    stage: Stage,
) -> None:
    supervisor = stage.supervisor(stage.deployment(preload=True))
    async with running(supervisor):
        await settled(supervisor, S.READY)
        with await supervisor.admission.admit(M, load_wait_s=5):
            supervisor.set_desired([])
            with pytest.raises(ModelNotFound):
                await supervisor.ensure_ready(M, 5)
            await settled(supervisor, S.DRAINING)
            assert supervisor.models() == ()
        await settled(supervisor, None)
    assert stage.launcher.alive() == []


async def test_an_external_server_is_watched_without_being_asked_for(stage: Stage) -> None:
    stage.prober.is_up = False
    outside = stage.deployment(engine="auto", external_url="http://127.0.0.1:1234")
    supervisor = stage.supervisor(outside)
    async with running(supervisor):
        await until(supervisor, lambda: statuses(supervisor) == {"m": "failed"})
        with pytest.raises(Unavailable, match="the external server does not answer"):
            await supervisor.ensure_ready(M, 5)
        stage.prober.is_up = True
        await settled(supervisor, S.EXTERNAL)
        upstream = await supervisor.ensure_ready(M, 5)
        assert upstream == Upstream("http://127.0.0.1:1234/v1", "m")
        await supervisor.drain_and_stop(0)
    assert stage.launcher.launched == []


async def test_stopping_lets_requests_finish_and_takes_no_new_ones(stage: Stage) -> None:
    supervisor = stage.supervisor(
        stage.deployment("a", preload=True), stage.deployment("b", preload=True)
    )
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        await settled(supervisor, S.READY, "a")
        await settled(supervisor, S.READY, "b")
        with await supervisor.admission.admit(ModelId("a"), load_wait_s=5):
            group.start_soon(supervisor.drain_and_stop, 60)
            await settled(supervisor, S.COLD, "b")
            assert state(supervisor, "a") is S.DRAINING
            with pytest.raises(Unavailable, match="the agent is stopping"):
                await supervisor.ensure_ready(ModelId("a"), 5)
    assert stage.launcher.alive() == []


async def test_stopping_does_not_wait_longer_than_the_grace(stage: Stage) -> None:
    supervisor = stage.supervisor(stage.deployment(preload=True))
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        await settled(supervisor, S.READY)
        with await supervisor.admission.admit(M, load_wait_s=5):
            group.start_soon(supervisor.drain_and_stop, 0.01)
            await settled(supervisor, S.DRAINING)
            stage.clock.now += 1
            await settled(supervisor, S.COLD)
            assert stage.launcher.alive() == []
    with anyio.fail_after(5):
        await supervisor.drain_and_stop(0)


async def test_events_are_numbered_and_told_at_once(stage: Stage) -> None:
    told: list[WorkerEvent] = []
    supervisor = Supervisor(
        engines=ENGINES,
        host=stage.host,
        around=stage.around(),
        wall=lambda: 5.0,
        on_event=told.append,
    )
    supervisor.set_desired([stage.deployment(preload=True)])
    async with running(supervisor):
        await settled(supervisor, S.READY)
        events = supervisor.events()
        assert [event.seq for event in events] == [1, 2, 3]
        assert [(event.from_state, event.to_state, event.ts) for event in events] == [
            (S.COLD, S.STARTING, 5.0),
            (S.STARTING, S.LOADING, 5.0),
            (S.LOADING, S.READY, 5.0),
        ]
        assert supervisor.events(2) == events[2:]
        assert tuple(told) == events


async def test_changed_returns_at_once_if_something_was_missed(stage: Stage) -> None:
    supervisor = stage.supervisor()
    seen = supervisor.version
    supervisor.set_desired([stage.deployment()])
    with anyio.fail_after(1):
        assert await supervisor.changed(seen) == supervisor.version > seen
