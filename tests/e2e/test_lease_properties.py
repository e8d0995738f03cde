"""Whatever network, restarts and clocks do to it, the lease protocol keeps its promises."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_agent.control.lease_core import LEAST_GAP_S, LeaseStatus
from router.fleet.membership import LeaseState
from tests.e2e.lease_world import POLL_S, TTL_S, World

# backoff and heartbeats take 11 s at most; one that hears of its newer start last needs a timeout more
HEALED_S = 60.0
# What an agent said before it ended comes up to 45 s late, and may count for three TTL, where the
# router doubts itself.
SILENT_S = 3 * TTL_S + 2 * POLL_S

Step = tuple[str, int, float]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "wait",
                "wait",
                "wait",
                "change",
                "change",
                "drain",
                "restart",
                "second",
                "leave",
                "boot",
                "stop",
                "cut",
                "heal",
                "away",
                "back",
                "wall",
                "revoke",
            ]
        ),
        st.integers(1, 3),
        st.floats(0.01, 1).map(lambda share: share**3),
    ),
    max_size=40,
)


def do(world: World, step: Step, check: Callable[[], None]) -> None:
    what, row_id, share = step
    match what:
        case "wait":
            world.wait(70 * share, check)
        case "restart":
            world.kill(row_id)
            world.start(row_id)
        case "second":
            world.start(row_id)
        case "stop":
            world.is_stopped = True
        case "cut" | "heal":
            world.is_stopped = world.is_stopped and what == "cut"
            world.is_cut = what == "cut"
        case "away" | "back":
            world.registry.is_away = what == "away"
        case "wall":
            world.wall += (share - 0.3) * 200_000
        case "boot":
            world.boot()
        case _:
            getattr(world, what)(row_id)


class Promises:
    """Checks what must hold at every moment."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.boot: object = None
        self.newest: dict[int, tuple[int, int]] = {}

    def __call__(self) -> None:
        world = self.world
        if self.boot is not world.membership:  # its registry may have missed something
            self.boot, self.newest = world.membership, {}
        if world.is_stopped:
            return
        for member in world.membership:
            row_id, heard = member.row_id, (member.registration.incarnation, member.seq)
            assert heard >= self.newest.get(row_id, heard), "it went back"
            self.newest[row_id] = heard
            assert heard == world.heard[row_id]
            state = world.membership.state(member)
            assert (world.routed_token(row_id) is not None) is state.is_routable
            if not state.is_routable:
                continue
            assert row_id not in world.revoked or world.is_behind
            # nobody is probed here: one TTL of grace is the most there can be, once the router looks
            looked_at = max(world.heard_at[row_id], world.stopped_at + POLL_S)
            assert world.now - looked_at < 3 * TTL_S + POLL_S
            [process] = [
                p for p in world.processes if p.row_id == row_id and p.incarnation == heard[0]
            ]
            assert world.routed_token(row_id) == process.token
            assert member.queued <= process.version


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_promises_hold_whatever_happens_and_it_heals(seed: int, steps: list[Step]) -> None:
    world = World(Random(seed))
    check = Promises(world)
    try:
        for step in steps:
            do(world, step, check)
            world.wait(0.01, check)
        world.calm()
        world.wait(HEALED_S, check)
        for row_id in world.rows:
            is_well(world, row_id)
        world.wait(SILENT_S, check)
        for row_id in world.rows:
            is_well(world, row_id)
            is_quiet(world, row_id)
        for process in world.processes:
            gaps = [b - a for a, b in zip(process.sent, process.sent[1:], strict=False)]
            assert min(gaps, default=1.0) >= LEAST_GAP_S - 1e-9
    finally:
        world.registry.close()


def is_well(world: World, row_id: int) -> None:
    """The newest start of an agent is reached in its newest state, and older ones have stopped."""
    alive = [p for p in world.processes if p.row_id == row_id and p.is_alive]
    newest = alive[-1] if alive else None
    assert all(p.core.status is not LeaseStatus.HELD for p in alive[:-1])
    if row_id in world.revoked:
        assert newest is None or newest.core.status in {
            LeaseStatus.REFUSED,
            LeaseStatus.SUPERSEDED,
        }
        assert world.routed_token(row_id) is None
    elif newest is None:
        return
    elif newest.core.status is LeaseStatus.SUPERSEDED:
        assert world.newest[row_id] > newest.incarnation
    else:
        assert newest.core.status is LeaseStatus.HELD
        member = world.member(row_id)
        assert (member.registration.access_token, member.queued) == (newest.token, newest.version)
        expected = LeaseState.EXPIRED if newest.drains else LeaseState.LIVE
        assert world.state(row_id) is expected


def is_quiet(world: World, row_id: int) -> None:
    """An agent of which no start is alive gets nothing."""
    if not any(p.is_alive for p in world.processes if p.row_id == row_id):
        assert world.routed_token(row_id) is None
