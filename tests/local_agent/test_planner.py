from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_agent.domain import (
    Action,
    Deployment,
    Desired,
    Disable,
    Drain,
    Enable,
    Forget,
    ModelId,
    Pull,
    Reset,
    Start,
    Stop,
    WorkerState,
    WorkerStatus,
)
from local_agent.planner import DRAIN_S, next_due, plan

S = WorkerState
M = ModelId("m")
NOW = 1000.0


def deployment(model: ModelId = M, context: int = 1) -> Deployment:
    return Deployment(model=model, engine="simulated", context_tokens=context)


HASH = deployment().config_hash
RUNNING = Desired(deployment=deployment(), is_wanted=True)
RESTING = Desired(deployment=deployment())
BROKEN = Desired(deployment=deployment(), is_wanted=True, problem="no")
PULLING = Desired(deployment=deployment(), is_wanted=True, is_pulling=True, problem="no")
CHANGED = Desired(deployment=deployment(context=2), is_wanted=True)


def status(state: WorkerState, **more: object) -> WorkerStatus:
    fields = {"state": state, "since": NOW, "config_hash": HASH, **more}
    return WorkerStatus(**fields)  # type: ignore[arg-type] # names are checked by the class


@pytest.mark.parametrize(
    ("want", "have", "action"),
    [
        (RUNNING, status(S.COLD), Start(RUNNING.deployment)),
        (RUNNING, status(S.READY), None),
        (RUNNING, status(S.LOADING), None),
        (RUNNING, status(S.EXTERNAL), None),
        (RUNNING, status(S.STOPPING), None),
        (RUNNING, status(S.BACKOFF, not_before=NOW + 1), None),
        (RUNNING, status(S.BACKOFF, not_before=NOW), Start(RUNNING.deployment)),
        (RUNNING, status(S.QUARANTINED), None),
        (RUNNING, status(S.UNAVAILABLE), Enable(M)),
        (RUNNING, status(S.PULLING), Enable(M)),
        (RESTING, status(S.COLD), None),
        (RESTING, status(S.BACKOFF), None),
        (RESTING, status(S.READY), Stop(M)),
        (RESTING, status(S.READY, in_flight=1), Drain(M)),
        (CHANGED, status(S.READY), Stop(M)),
        (CHANGED, status(S.READY, in_flight=1), Drain(M)),
        (CHANGED, status(S.LOADING), Stop(M)),
        (CHANGED, status(S.EXTERNAL), Stop(M)),
        (CHANGED, status(S.BACKOFF, not_before=NOW + 99), Reset(M)),
        (CHANGED, status(S.QUARANTINED), Reset(M)),
        (CHANGED, status(S.COLD), Start(CHANGED.deployment)),
        (BROKEN, status(S.COLD), Disable(M, "no")),
        (BROKEN, status(S.UNAVAILABLE, reason="no"), None),
        (BROKEN, status(S.UNAVAILABLE, reason="other"), Disable(M, "no")),
        (BROKEN, status(S.PULLING), Disable(M, "no")),
        (PULLING, status(S.UNAVAILABLE, reason="no"), Pull(M)),
        (PULLING, status(S.PULLING), None),
        (PULLING, status(S.COLD), Disable(M, "no")),
        (PULLING, status(S.READY), Stop(M)),
        (BROKEN, status(S.QUARANTINED), Reset(M)),
        (BROKEN, status(S.READY), Stop(M)),
        (RUNNING, status(S.DRAINING, in_flight=1), None),
        (RUNNING, status(S.DRAINING), Stop(M)),
        (RUNNING, status(S.DRAINING, in_flight=1, since=NOW - DRAIN_S), Stop(M)),
        (None, status(S.READY, in_flight=1), Drain(M)),
        (None, status(S.STARTING), Stop(M)),
        (None, status(S.STOPPING), None),
        (None, status(S.PULLING), Forget(M)),
        (None, status(S.COLD), Forget(M)),
        (None, status(S.BACKOFF), Forget(M)),
        (None, status(S.QUARANTINED), Forget(M)),
    ],
)
def test_one_worker(want: Desired | None, have: WorkerStatus, action: Action | None) -> None:
    desired = {} if want is None else {M: want}
    assert plan(desired, {M: have}, NOW) == (() if action is None else (action,))


def test_a_deployment_without_a_worker_is_cold() -> None:
    assert plan({M: RUNNING}, {}, NOW) == (Start(RUNNING.deployment),)


AFTER = {
    Drain: S.DRAINING,
    Stop: S.COLD,
    Reset: S.COLD,
    Disable: S.UNAVAILABLE,
    Pull: S.PULLING,
    Enable: S.COLD,
}


def act(action: Action, observed: dict[ModelId, WorkerStatus]) -> None:
    """Do what an action does in the end, requests that finish included."""
    if isinstance(action, Start):
        model = action.deployment.model
        observed[model] = status(S.READY, config_hash=action.deployment.config_hash)
    elif isinstance(action, Forget):
        del observed[action.model]
    else:
        reason = action.reason if isinstance(action, Disable) else None
        before = observed[action.model]
        observed[action.model] = status(
            AFTER[type(action)], config_hash=before.config_hash, reason=reason
        )


models = st.sampled_from([ModelId(f"m{n}") for n in range(4)])
wants = st.dictionaries(
    models,
    st.tuples(st.integers(1, 2), st.booleans(), st.sampled_from([None, "no"]), st.booleans()),
)
states = st.sampled_from([state for state in S if state is not S.STOPPING])
haves = st.dictionaries(models, st.tuples(states, st.integers(1, 2), st.integers(0, 1)))


@settings(max_examples=300)
@given(wants, haves)
def test_it_reaches_a_fixpoint_that_is_what_was_desired(
    want: dict[ModelId, tuple[int, bool, str | None, bool]],
    have: dict[ModelId, tuple[WorkerState, int, int]],
) -> None:
    desired = {
        model: Desired(
            deployment=deployment(model, context),
            is_wanted=wanted,
            problem=problem,
            is_pulling=pulling,
        )
        for model, (context, wanted, problem, pulling) in want.items()
    }
    observed = {
        model: status(state, config_hash=deployment(model, context).config_hash, in_flight=busy)
        for model, (state, context, busy) in have.items()
    }
    for _ in range(8):
        # a minute passes in each round: drains and pauses end
        actions = plan(desired, observed, NOW + 60)
        if not actions:
            break
        for action in actions:
            observed.setdefault(
                action.deployment.model if isinstance(action, Start) else action.model,
                WorkerStatus(),
            )
            act(action, observed)
    else:
        pytest.fail("the plan does not settle")
    assert set(observed) <= set(desired)
    for model, wish in desired.items():
        found = observed.get(model, WorkerStatus())
        if wish.problem:
            assert found.state is (S.PULLING if wish.is_pulling else S.UNAVAILABLE)
        elif wish.is_wanted and found.state is not S.QUARANTINED:
            assert found.state in {S.READY, S.EXTERNAL, S.STARTING, S.LOADING}
            assert found.config_hash == wish.deployment.config_hash
        else:
            assert found.state in {S.COLD, S.BACKOFF, S.QUARANTINED}


def test_a_worker_that_makes_room_finishes_its_work_however_long() -> None:
    patient = Desired(deployment=deployment(), is_patient=True)
    late = NOW + DRAIN_S + 1
    for want, action in ((patient, None), (RESTING, Stop(M))):
        busy = {M: status(S.DRAINING, in_flight=1)}
        assert plan({M: want}, busy, late) == (() if action is None else (action,))
        assert next_due({M: want}, busy) == (None if action is None else NOW + DRAIN_S)
    assert plan({M: patient}, {M: status(S.DRAINING)}, NOW) == (Stop(M),)
    assert plan({M: patient}, {M: status(S.READY, in_flight=1)}, NOW) == (Drain(M),)


def test_next_due_is_the_earliest_wait() -> None:
    other = ModelId("other")
    observed = {
        M: status(S.BACKOFF, not_before=NOW + 40),
        other: status(S.DRAINING, in_flight=1),
        ModelId("forgotten"): status(S.BACKOFF, not_before=NOW + 1),
    }
    assert next_due({M: RUNNING}, observed, drain_s=50) == NOW + 40
    assert next_due({M: RUNNING}, observed, drain_s=30) == NOW + 30
    assert next_due({M: RESTING}, {M: observed[M]}) is None
    assert next_due({}, {}) is None
