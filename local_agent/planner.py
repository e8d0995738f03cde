"""What to do next: `plan(desired, observed, now)` gives the actions that close the gap. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from local_agent.domain import (
    Action,
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
    WorkerStatus,
)
from local_agent.domain import WorkerState as S

DRAIN_S = 60.0
"""How long a busy worker may finish its work before it is stopped."""


def plan(
    desired: Mapping[ModelId, Desired],
    observed: Mapping[ModelId, WorkerStatus],
    now: float,
    *,
    drain_s: float = DRAIN_S,
) -> tuple[Action, ...]:
    """Return what to do now, at most one action per worker. An empty plan means: converged.

    A deployment that is not in `desired` has been removed: its worker drains, stops and is
    forgotten. Nothing is done to a worker that is stopping: its exit is waited for.
    """
    decisions = (
        _decide(model, desired.get(model), observed.get(model, WorkerStatus()), now, drain_s)
        for model in dict.fromkeys((*observed, *desired))
    )
    return tuple(action for action in decisions if action is not None)


def next_due(
    desired: Mapping[ModelId, Desired],
    observed: Mapping[ModelId, WorkerStatus],
    *,
    drain_s: float = DRAIN_S,
) -> float | None:
    """Return when time alone will change the plan; None if it won't."""
    times = [
        status.since + drain_s if status.state is S.DRAINING else status.not_before
        for model, status in observed.items()
        if (status.state is S.DRAINING and not _is_patient(desired.get(model)))
        or (status.state is S.BACKOFF and model in desired and desired[model].is_wanted)
    ]
    return min(times, default=None)


def _decide(
    model: ModelId, want: Desired | None, status: WorkerStatus, now: float, drain_s: float
) -> Action | None:
    state = status.state
    if state is S.STOPPING:
        return None
    if state is S.DRAINING:
        is_late = now >= status.since + drain_s and not _is_patient(want)
        is_over = status.in_flight == 0 or is_late
        return Stop(model) if is_over else None
    if state in {S.STARTING, S.LOADING, S.READY, S.EXTERNAL}:
        return None if _may_live(want, status) else _end(model, status)
    if want is None:
        return Forget(model)
    return _rest(want, status, now)


def _is_patient(want: Desired | None) -> bool:
    return want is not None and want.is_patient


def _may_live(want: Desired | None, status: WorkerStatus) -> bool:
    """Tell whether a running worker is still what is asked for."""
    return (
        want is not None
        and want.is_wanted
        and want.problem is None
        and want.deployment.config_hash == status.config_hash
    )


def _end(model: ModelId, status: WorkerStatus) -> Action:
    """An idle worker stops at once; a busy one finishes its work first."""
    if status.state is S.READY and status.in_flight:
        return Drain(model)
    return Stop(model)


def _rest(want: Desired, status: WorkerStatus, now: float) -> Action | None:
    """Decide for a worker that does not run."""
    state, model = status.state, want.deployment.model
    if state in {S.BACKOFF, S.QUARANTINED}:
        if want.problem is not None or want.deployment.config_hash != status.config_hash:
            return Reset(model)
        is_due = state is S.BACKOFF and now >= status.not_before
        return Start(want.deployment) if want.is_wanted and is_due else None
    if want.problem is not None:
        return _without(want, want.problem, status)
    if state is not S.COLD:
        return Enable(model)
    return Start(want.deployment) if want.is_wanted else None


def _without(want: Desired, problem: str, status: WorkerStatus) -> Action | None:
    """Decide for a worker that lacks something; a pull may bring it."""
    state, model = status.state, want.deployment.model
    if want.is_pulling and state in {S.UNAVAILABLE, S.PULLING}:
        return Pull(model) if state is S.UNAVAILABLE else None
    is_said = state is S.UNAVAILABLE and status.reason == problem
    return None if is_said else Disable(model, problem)
