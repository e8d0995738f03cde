from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_agent.domain import WorkerState, WorkerStatus
from local_agent.lifecycle import (
    ALIVE,
    TRANSITIONS,
    Event,
    FailureRule,
    IllegalTransitionError,
    advance,
    is_legal,
)

S = WorkerState
RULE = FailureRule()


def step(status: WorkerStatus, event: Event, now: float = 0.0) -> WorkerStatus:
    return advance(status, event, now, rng=Random(0))


@given(st.lists(st.sampled_from(list(Event)), max_size=60), st.integers())
def test_no_sequence_of_events_leaves_the_table(events: list[Event], seed: int) -> None:
    status, rng = WorkerStatus(), Random(seed)
    for now, event in enumerate(events):
        known = TRANSITIONS.get((status.state, event))
        assert is_legal(status.state, event) == (known is not None)
        if known is None:
            with pytest.raises(IllegalTransitionError):
                advance(status, event, now, rng=rng)
            continue
        status = advance(status, event, now, rng=rng)
        assert status.state in ({known, S.QUARANTINED} if known is S.BACKOFF else {known})


def test_every_state_can_reach_cold_and_be_reached_from_it() -> None:
    # quarantine is where the count of failures turns a backoff into
    edges = {(a, b) for (a, _), b in TRANSITIONS.items()} | {(S.STOPPING, S.QUARANTINED)}
    to_cold, from_cold = {S.COLD}, {S.COLD}
    for _ in S:
        to_cold |= {a for a, b in edges if b in to_cold}
        from_cold |= {b for a, b in edges if a in from_cold}
    assert to_cold == set(S)
    assert from_cold == set(S)


def test_only_an_exit_ends_an_alive_worker() -> None:
    for (before, event), after in TRANSITIONS.items():
        if before in ALIVE and after not in ALIVE:
            assert before is S.STOPPING
            assert event in {Event.EXITED, Event.FAILED, Event.HELD_UP}


def test_the_message_names_event_and_state() -> None:
    with pytest.raises(IllegalTransitionError, match="'drain' is not legal in 'cold'"):
        step(WorkerStatus(), Event.DRAIN)


@given(st.integers(1, 4), st.integers())
def test_backoff_doubles_from_ten_seconds_within_a_fifth(earlier: int, seed: int) -> None:
    status = WorkerStatus(state=S.STOPPING, failures=tuple([50.0] * (earlier - 1)))
    after = advance(status, Event.FAILED, 60.0, rng=Random(seed), reason="why")
    wait_s = 10 * 2 ** (earlier - 1)
    assert after.state is S.BACKOFF
    assert after.reason == "why"
    assert 0.8 * wait_s <= after.not_before - 60.0 <= 1.2 * wait_s


def test_what_was_held_up_is_tried_again_after_the_first_wait_and_is_no_failure() -> None:
    status = WorkerStatus(state=S.STOPPING, failures=(50.0, 55.0))
    after = step(status, Event.HELD_UP, 60.0)
    assert (after.state, after.failures) == (S.BACKOFF, (50.0, 55.0))
    assert 0.8 * RULE.first_s <= after.not_before - 60.0 <= 1.2 * RULE.first_s


def test_the_wait_has_a_limit() -> None:
    rule = FailureRule(quarantine_at=100)
    status = WorkerStatus(state=S.STOPPING, failures=tuple([0.0] * 30))
    after = advance(status, Event.FAILED, 0.0, rng=Random(0), rule=rule)
    assert after.not_before <= rule.most_s * 1.2


def test_the_fifth_failure_in_ten_minutes_quarantines_until_a_reset() -> None:
    status = WorkerStatus()
    for number in range(RULE.quarantine_at):
        assert status.state in {S.COLD, S.BACKOFF}
        for event in (Event.START, Event.SPAWNED, Event.UNHEALTHY, Event.FAILED):
            status = step(status, event, number * 100.0)
    assert status.state is S.QUARANTINED
    assert len(status.failures) == RULE.quarantine_at
    after = step(status, Event.RESET, 900.0)
    assert (after.state, after.failures, after.not_before) == (S.COLD, (), 0.0)


def test_failures_older_than_the_window_are_forgotten() -> None:
    status = WorkerStatus(state=S.STOPPING, failures=(0.0, 1.0, 2.0, 3.0))
    after = step(status, Event.FAILED, RULE.window_s + 2.5)
    assert after.state is S.BACKOFF
    assert after.failures == (3.0, RULE.window_s + 2.5)


def test_a_start_remembers_its_configuration_and_since_is_the_entry_into_a_state() -> None:
    status = advance(WorkerStatus(), Event.START, 7.0, rng=Random(0), config_hash="abc")
    loading = step(status, Event.SPAWNED, 8.0)
    lost = step(loading, Event.LOST, 9.0)
    assert (loading.config_hash, loading.since, lost.since) == ("abc", 8.0, 8.0)
