"""Workers that an earlier agent left running: which of them a later one takes over. Fakes only."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_agent.domain import ModelId
from local_agent.ports import Launch, Left
from local_agent.process.adoption import Seen, digest, why_not
from local_agent.process.records import Record
from local_agent.supervisor import Supervisor
from tests.local_agent.harness import until as until_so
from tests.local_agent.residency import A, S, running, settled, sized, states, supervised, until

if TYPE_CHECKING:
    from tests.local_agent.conftest import Stage

M = ModelId("m")
RECORD = Record(
    name="m",
    marker="mark",
    config_hash="hash",
    port=7,
    owner_pid=1,
    owner_create_time=1.0,
    pid=2,
    create_time=2.0,
    launch="how",
    birth="boot/2",
)
OURS = Seen(has_owner=False, is_leader=True, marker="mark")
texts = st.sampled_from(["mark", "hash", "how", ""])


@given(
    seen=st.builds(Seen, has_owner=st.booleans(), is_leader=st.booleans(), marker=texts),
    config_hash=st.none() | texts,
    launch=st.none() | texts,
)
def test_a_process_is_kept_only_if_it_is_proven_to_be_ours_and_what_is_wanted(
    seen: Seen, config_hash: str | None, launch: str | None
) -> None:
    is_kept = why_not(RECORD, seen, config_hash, launch) is None
    assert is_kept == (seen == OURS and config_hash == "hash" and launch == "how")


@pytest.mark.parametrize(
    ("seen", "config_hash", "launch", "reason"),
    [
        (replace(OURS, has_owner=True), "hash", "how", "its agent still runs"),
        (replace(OURS, is_leader=False), "hash", "how", "it has ended"),
        (replace(OURS, marker=""), "hash", "how", "it does not carry its mark"),
        (OURS, None, None, "its model is not configured, or can't run here"),
        (OURS, "other", "how", "its configuration has changed"),
        (OURS, "hash", "other", "it would be started in another way now"),
        (OURS, "hash", "how", None),
    ],
)
def test_the_reason_is_told(
    seen: Seen, config_hash: str | None, launch: str | None, reason: str | None
) -> None:
    assert why_not(RECORD, seen, config_hash, launch) == reason


def test_a_record_of_an_agent_that_did_not_know_of_adoption_is_not_kept() -> None:
    old = msgspec.structs.replace(RECORD, launch="", birth=None)
    launch = digest(Launch(("x",)), (), "mark")
    assert why_not(old, OURS, "hash", launch) == "it would be started in another way now"


def test_another_program_argument_folder_or_variable_is_another_launch() -> None:
    launch = Launch(("serve", "--port", "7"), {"A": "old"}, cwd="/a")
    digests = {
        digest(launch, ("python",), "mark"),
        digest(replace(launch, argv=("serve", "--port", "8")), ("python",), "mark"),
        digest(replace(launch, cwd="/b"), ("python",), "mark"),
        digest(launch, ("python3",), "mark"),
        digest(replace(launch, env={"A": "new"}), ("python",), "mark"),
        digest(launch, ("python",), "other"),
    }
    assert len(digests) == 6
    assert digest(replace(launch, env={"A": "old"}), ("python",), "mark") in digests
    assert not any("old" in one for one in digests)


# -- the supervisor ----------------------------------------------------------------------------------


def listing(*models: str) -> str:
    return json.dumps({"object": "list", "data": [{"id": model} for model in models]})


def left(stage: Stage, *models: str) -> None:
    stage.launcher.left = {model: Left(99, must_serve=True) for model in models}
    stage.prober.metrics = listing(*models)


def path(supervisor: Supervisor, model: str = "m") -> list[S]:
    return [event.to_state for event in supervisor.events() if event.worker == model]


async def test_what_an_earlier_agent_left_running_serves_on(stage: Stage) -> None:
    left(stage, "m", "unknown")
    supervisor = stage.supervisor(stage.deployment(), stage.deployment("cold"))
    guess_s = supervisor.residency.load_s(M)
    async with running(supervisor):
        await settled(supervisor, "m", S.READY)
        assert path(supervisor) == [S.STARTING, S.READY]
        assert supervisor.events()[-1].reason == "adopted: an earlier agent had started it"
        assert (await supervisor.ensure_ready(M, 0)).base_url == "http://127.0.0.1:99/v1"
        assert supervisor.residency.load_s(M) == guess_s, "nothing was loaded"
        assert supervisor.residency.ledger.held == {"m": 96}
        assert states(supervisor)["cold"] is S.COLD
    assert stage.launcher.kept == ["m"]
    assert len(stage.launcher.launched) == 1
    assert stage.launcher.alive() == []


async def test_a_container_may_still_be_loading(stage: Stage) -> None:
    stage.launcher.left = {"m": Left(99, must_serve=False)}
    stage.prober.is_up = False
    supervisor = stage.supervisor(stage.deployment())
    async with running(supervisor):
        await settled(supervisor, "m", S.LOADING)
        stage.prober.is_up = True
        await settled(supervisor, "m", S.READY)
    assert stage.launcher.kept == ["m"]


async def test_one_that_does_not_get_well_is_ended_and_loaded_anew(stage: Stage) -> None:
    left(stage, "m")
    stage.prober.is_up = False
    stage.limit(adopting_s=0.01)
    supervisor = stage.supervisor(stage.deployment(preload=True))
    async with running(supervisor):
        await settled(supervisor, "m", S.LOADING)
        assert stage.launcher.kept == []
        assert stage.launcher.processes[0].port == 4321
        stage.prober.is_up = True
        await settled(supervisor, "m", S.READY)


@pytest.mark.parametrize("answer", [None, "", "[]", '{"data": 1}', listing("other")])
async def test_one_that_serves_something_else_is_not_kept(stage: Stage, answer: str | None) -> None:
    left(stage, "m")
    stage.prober.metrics = answer
    supervisor = stage.supervisor(stage.deployment())
    async with running(supervisor):
        await until_so(lambda: stage.launcher.reaped)
        assert stage.launcher.kept == []
    assert stage.launcher.launched == []
    assert "http://127.0.0.1:99/v1/models" in stage.prober.asked_load


async def test_what_does_not_fit_the_budget_is_ended(stage: Stage) -> None:
    left(stage, "a", "b", "c")
    supervisor = supervised(
        stage, sized(stage, "a", 60), sized(stage, "b", 60), sized(stage, "c", 40)
    )
    async with running(supervisor):
        await settled(supervisor, "c", S.READY)
        await settled(supervisor, "a", S.READY)
        assert stage.launcher.kept == ["a", "c"]
        assert supervisor.residency.ledger.held == {"a": 60, "c": 40}
        assert states(supervisor)["b"] is S.COLD


async def test_a_preloaded_model_does_not_take_the_memory_of_one_that_is_there(
    stage: Stage,
) -> None:
    left(stage, "b")
    supervisor = supervised(stage, sized(stage, "a", 60, preload=True), sized(stage, "b", 60))
    supervisor.residency.min_residency_s = 1000
    async with running(supervisor):
        await settled(supervisor, "b", S.READY)
        await until(supervisor, lambda: supervisor.residency.is_queued(A))
        assert [name for name, *_ in stage.launcher.launched] == ["b"]


@pytest.mark.parametrize("is_changed", [True, False])
async def test_one_whose_entry_changes_meanwhile_is_not_kept(
    stage: Stage, is_changed: bool
) -> None:
    left(stage, "m")
    stage.prober.is_up = False
    deployment = stage.deployment()
    supervisor = stage.supervisor(deployment)
    async with running(supervisor):
        await until_so(partial(stage.has_asked, 1))
        supervisor.set_desired([replace(deployment, context_tokens=9)] if is_changed else [])
        stage.prober.is_up = True
        await until_so(lambda: stage.launcher.reaped)
        assert stage.launcher.kept == []
    assert stage.launcher.launched == []


async def test_an_agent_that_is_told_to_stop_meanwhile_ends_what_was_left(stage: Stage) -> None:
    left(stage, "m")
    stage.prober.is_up = False
    stage.limit(adopting_s=3600)
    supervisor = stage.supervisor(stage.deployment(preload=True))
    async with running(supervisor):
        await until_so(partial(stage.has_asked, 1))
        await supervisor.drain_and_stop(0)
        assert (stage.launcher.reaped, stage.launcher.kept) == (1, [])
    assert stage.launcher.launched == []


async def test_one_that_falls_ill_right_after_is_loading_and_then_fails(stage: Stage) -> None:
    stage.launcher.left = {"m": Left(99, must_serve=False)}
    stage.prober.is_up = False
    stage.limit(loading_s=0.01)
    supervisor = stage.supervisor(stage.deployment())
    async with running(supervisor):
        await settled(supervisor, "m", S.BACKOFF)
        assert path(supervisor) == [S.STARTING, S.LOADING, S.STOPPING, S.BACKOFF]
