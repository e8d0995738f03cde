"""The life of a worker: one table, and one pure function that moves through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from random import Random

from local_agent.domain import WorkerState as S
from local_agent.domain import WorkerStatus
from shared.kit.backoff import backoff_s


class Event(str, Enum):
    """What can happen to a worker."""

    DISABLE = "disable"
    ENABLE = "enable"
    PULL = "pull"
    START = "start"
    SPAWNED = "spawned"
    LOADED = "loaded"
    ADOPTED = "adopted"
    ATTACHED = "attached"
    LOST = "lost"
    UNHEALTHY = "unhealthy"
    DRAIN = "drain"
    STOP = "stop"
    EXITED = "exited"
    FAILED = "failed"
    HELD_UP = "held_up"
    RESET = "reset"


TRANSITIONS: Mapping[tuple[S, Event], S] = {
    (S.UNAVAILABLE, Event.ENABLE): S.COLD,
    (S.UNAVAILABLE, Event.DISABLE): S.UNAVAILABLE,  # for another reason
    (S.UNAVAILABLE, Event.PULL): S.PULLING,
    (S.PULLING, Event.ENABLE): S.COLD,
    (S.PULLING, Event.DISABLE): S.UNAVAILABLE,
    (S.COLD, Event.DISABLE): S.UNAVAILABLE,
    (S.COLD, Event.START): S.STARTING,
    (S.STARTING, Event.SPAWNED): S.LOADING,
    (S.STARTING, Event.ADOPTED): S.READY,  # an earlier agent has loaded it
    (S.STARTING, Event.UNHEALTHY): S.STOPPING,
    (S.STARTING, Event.STOP): S.STOPPING,
    (S.LOADING, Event.LOADED): S.READY,
    (S.LOADING, Event.ATTACHED): S.EXTERNAL,
    (S.LOADING, Event.LOST): S.LOADING,  # an external server that does not answer yet
    (S.LOADING, Event.UNHEALTHY): S.STOPPING,
    (S.LOADING, Event.STOP): S.STOPPING,
    (S.READY, Event.DRAIN): S.DRAINING,
    (S.READY, Event.UNHEALTHY): S.STOPPING,
    (S.READY, Event.STOP): S.STOPPING,
    (S.DRAINING, Event.UNHEALTHY): S.STOPPING,
    (S.DRAINING, Event.STOP): S.STOPPING,
    (S.STOPPING, Event.EXITED): S.COLD,
    (S.STOPPING, Event.FAILED): S.BACKOFF,
    (S.STOPPING, Event.HELD_UP): S.BACKOFF,  # by something that is not the worker's fault
    (S.BACKOFF, Event.START): S.STARTING,
    (S.BACKOFF, Event.RESET): S.COLD,
    (S.QUARANTINED, Event.RESET): S.COLD,
    (S.EXTERNAL, Event.LOST): S.LOADING,
    (S.EXTERNAL, Event.STOP): S.STOPPING,
}

# a tuple: each request asks, and the hash of an enum's member is computed in Python
SERVING = (S.READY, S.EXTERNAL)
ALIVE = frozenset({S.STARTING, S.LOADING, S.READY, S.DRAINING, S.STOPPING, S.EXTERNAL})
"""States in which something of the worker runs: a process, or the watch over an external server."""


class IllegalTransitionError(Exception):
    """The event has no meaning in this state: a defect of the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRule:
    """How long to wait after a failure, and when to give up (seconds)."""

    first_s: float = 10.0
    most_s: float = 300.0
    window_s: float = 600.0
    quarantine_at: int = 5


def is_legal(state: S, event: Event) -> bool:
    """Tell whether the table knows this event in this state."""
    return (state, event) in TRANSITIONS


def advance(
    status: WorkerStatus,
    event: Event,
    now: float,
    *,
    rng: Random,
    rule: FailureRule | None = None,
    reason: str | None = None,
    config_hash: str | None = None,
) -> WorkerStatus:
    """Return the status after `event`.

    Args:
        status: the status before.
        event: what happened.
        now: seconds of the agent's monotonic clock.
        rng: spreads the wait after a failure.
        rule: waits and limits after failures; the default is the product's.
        reason: why, for people; replaces the reason of the status before.
        config_hash: with START, the configuration that is started.

    Raises:
        IllegalTransitionError: the table has no such transition.
    """
    state = TRANSITIONS.get((status.state, event))
    if state is None:
        raise IllegalTransitionError(f"{event.value!r} is not legal in {status.state.value!r}")
    after = replace(
        status,
        state=state,
        since=status.since if state is status.state else now,
        reason=reason,
        config_hash=status.config_hash if config_hash is None else config_hash,
    )
    if event is Event.FAILED:
        return _failed(after, now, rng, rule or FailureRule())
    if event is Event.HELD_UP:
        wait_s = backoff_s(1, rng, first_s=(rule or FailureRule()).first_s)
        return replace(after, not_before=now + wait_s)
    if event is Event.RESET:
        return replace(after, failures=(), not_before=0.0)
    return after


def _failed(after: WorkerStatus, now: float, rng: Random, rule: FailureRule) -> WorkerStatus:
    """Count the failure; many of them within the window quarantine the worker."""
    failures = (*(at for at in after.failures if at > now - rule.window_s), now)
    if len(failures) >= rule.quarantine_at:
        return replace(after, state=S.QUARANTINED, failures=failures, not_before=0.0)
    wait_s = backoff_s(len(failures), rng, first_s=rule.first_s, most_s=rule.most_s)
    return replace(after, failures=failures, not_before=now + wait_s)
