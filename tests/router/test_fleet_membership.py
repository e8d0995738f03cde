"""Agents and leases on an injected clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.domain import AgentRecord, LeaseBook
from router.fleet.membership import LeaseState, Membership
from shared.contracts.agents import AgentModel, Heartbeat, Queue, Registration

TTL_S = 30.0


class FakeClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def registration(incarnation: int = 1, *models: str) -> Registration:
    return Registration(
        incarnation=incarnation,
        name="mac",
        base_url="http://127.0.0.1:5000",
        access_token="t" * 32,
        models=tuple(AgentModel(id=model) for model in models or ("tiny",)),
    )


def beat(seq: int, lease_id: str = "l1", **fields: Any) -> Heartbeat:
    return Heartbeat(lease_id=lease_id, incarnation=1, seq=seq, **fields)


def record(row_id: int = 1, **fields: Any) -> AgentRecord:
    given: dict[str, Any] = {
        "agent_id": "a",
        "registration": registration(),
        "lease_id": "l1",
        "heartbeat": None,
        **fields,
    }
    return AgentRecord(row_id=row_id, name="mac", **given)


@pytest.fixture
def members(clock: FakeClock) -> Membership:
    return Membership(clock, TTL_S)


def state_of(members: Membership, row_id: int = 1) -> LeaseState:
    member = members.get(row_id)
    assert member is not None
    return members.state(member)


def test_a_lease_grows_suspect_and_then_expires(members: Membership, clock: FakeClock) -> None:
    members.register(1, "mac", "a", registration(), "l1")
    for age_s, expected in (
        (0, LeaseState.LIVE),
        (29.9, LeaseState.LIVE),
        (30, LeaseState.SUSPECT),
        (59.9, LeaseState.SUSPECT),
        (60, LeaseState.EXPIRED),
        (86_399, LeaseState.EXPIRED),
        (86_400, LeaseState.GONE),
    ):
        clock.now = 1000.0 + age_s
        assert state_of(members) is expected, age_s
    assert members.renew(1, beat(1)) is not None
    assert state_of(members) is LeaseState.LIVE


def test_only_a_newer_seq_renews(members: Membership, clock: FakeClock) -> None:
    members.register(1, "mac", "a", registration(), "l1")
    members.renew(1, beat(5))
    clock.now += 40
    for seq in (5, 4, 0):
        found = members.renew(1, beat(seq, queue=Queue(waiting=9)))
        assert found is not None
        assert found.queued == 0
        assert state_of(members) is LeaseState.SUSPECT
    members.renew(1, beat(6, queue=Queue(waiting=9)))
    assert state_of(members) is LeaseState.LIVE
    member = members.get(1)
    assert member is not None
    assert member.queued == 9


def test_a_registration_that_is_older_than_what_was_heard_changes_nothing(
    members: Membership,
) -> None:
    said = registration()
    members.register(1, "mac", "a", said.model_copy(update={"seq": 3}), "l1")
    assert members.register(1, "mac", "a", said.model_copy(update={"seq": 2}), "l2") is None
    member = members.get(1)
    assert member is not None
    assert member.lease_id == "l1"


def test_another_lease_renews_nothing(members: Membership) -> None:
    assert members.renew(1, beat(1)) is None
    members.register(1, "mac", "a", registration(), "l1")
    assert members.renew(1, beat(1, "l2")) is None
    members.release(1)
    assert members.renew(1, beat(1)) is None
    members.release(2)


def test_draining_and_release_end_new_work_at_once(members: Membership) -> None:
    members.register(1, "mac", "a", registration(), "l1")
    members.renew(1, beat(1, state="draining"))
    assert state_of(members) is LeaseState.EXPIRED
    members.renew(1, beat(2))
    assert state_of(members) is LeaseState.LIVE
    members.release(1)
    assert state_of(members) is LeaseState.EXPIRED
    assert [member.row_id for member in members] == [1]


def test_models_are_as_last_described(members: Membership) -> None:
    members.register(1, "mac", "a", registration(), "l1")

    def ids() -> list[tuple[str, str]]:
        member = members.get(1)
        assert member is not None
        return [(model.id, model.status) for model in member.models]

    members.renew(1, beat(1))
    assert ids() == [("tiny", "unloaded")]
    members.renew(1, beat(2, models=(AgentModel(id="tiny", status="loaded"),)))
    assert ids() == [("tiny", "loaded")]
    members.renew(1, beat(3))
    assert ids() == [("tiny", "loaded")]
    members.register(1, "mac", "a", registration(2, "big"), "l2")
    assert ids() == [("big", "unloaded")]


def test_a_restarted_router_knows_the_agents_of_before(members: Membership) -> None:
    members.merge(LeaseBook(1, (record(heartbeat=beat(7)),)), read_at=1e9)
    assert state_of(members) is LeaseState.LIVE
    assert members.renew(1, beat(8)) is not None


def test_agents_that_never_registered_are_passed_over(members: Membership) -> None:
    members.merge(
        LeaseBook(1, (record(registration=None, agent_id=None, lease_id=None),)), read_at=1e9
    )
    assert list(members) == []


def test_a_revoked_agent_is_gone(members: Membership) -> None:
    members.register(1, "mac", "a", registration(), "l1")
    members.merge(LeaseBook(2, ()), read_at=1e9)
    assert members.get(1) is None


def test_an_agent_whose_credential_was_replaced_is_gone(
    members: Membership, clock: FakeClock
) -> None:
    bare = record(registration=None, agent_id=None, lease_id=None)
    members.register(1, "mac", "a", registration(), "l1")
    members.merge(LeaseBook(2, (bare,)), read_at=clock.now)
    assert members.get(1) is not None
    members.merge(LeaseBook(2, (bare,)), read_at=clock.now + 1)
    assert members.get(1) is None


@pytest.mark.parametrize(
    ("theirs", "is_taken"),
    [
        ({"registration": registration(2), "lease_id": "l2"}, True),
        ({"registration": registration(0), "lease_id": "l0"}, False),
        ({"lease_id": "l2"}, False),
        ({"heartbeat": beat(3)}, False),
        ({"heartbeat": beat(5)}, False),
        ({"heartbeat": beat(6)}, True),
        ({}, False),
    ],
)
def test_what_others_wrote_is_taken_if_it_is_newer(
    members: Membership, clock: FakeClock, theirs: dict[str, Any], is_taken: bool
) -> None:
    members.register(1, "mac", "a", registration(), "l1")
    members.renew(1, beat(5))
    clock.now += 35
    members.merge(LeaseBook(2, (record(**theirs),)), read_at=1e9)
    assert state_of(members) is (LeaseState.LIVE if is_taken else LeaseState.SUSPECT)


def test_a_lease_that_another_process_ended_is_over(members: Membership) -> None:
    members.register(1, "mac", "a", registration(2), "l1")
    members.merge(LeaseBook(2, (record(registration=registration(1), lease_id=None),)), read_at=1e9)
    assert state_of(members) is LeaseState.LIVE
    members.merge(LeaseBook(3, (record(registration=registration(2), lease_id=None),)), read_at=1e9)
    assert state_of(members) is LeaseState.EXPIRED
    members.merge(LeaseBook(4, (record(registration=registration(2), lease_id=None),)), read_at=1e9)
    assert state_of(members) is LeaseState.EXPIRED
    members.merge(LeaseBook(5, (record(registration=registration(2), lease_id="l2"),)), read_at=1e9)
    assert state_of(members) is LeaseState.LIVE


def test_a_book_read_before_the_goodbye_does_not_revive_the_lease(members: Membership) -> None:
    members.register(1, "mac", "a", registration(), "l1")
    members.release(1)
    members.release(1)
    members.merge(LeaseBook(2, (record(),)), read_at=members.now())
    assert state_of(members) is LeaseState.EXPIRED
    # nor does one read later, of a registry that could not be written
    members.merge(LeaseBook(3, (record(heartbeat=beat(9)),)), read_at=1e9)
    assert state_of(members) is LeaseState.EXPIRED
    members.merge(LeaseBook(4, (record(lease_id="l2"),)), read_at=1e9)
    assert state_of(members) is LeaseState.LIVE


def test_a_book_read_before_a_new_lease_does_not_end_it(
    members: Membership, clock: FakeClock
) -> None:
    read_at = members.now()
    clock.now += 0.1
    members.register(1, "mac", "a", registration(), "l2")
    members.merge(LeaseBook(2, (record(lease_id=None),)), read_at)
    assert state_of(members) is LeaseState.LIVE
    members.merge(LeaseBook(3, (record(lease_id=None),)), members.now() + 1)
    assert state_of(members) is LeaseState.EXPIRED


class Leases(RuleBasedStateMachine):
    """Whatever comes in whatever order: a lease is worth what its last new message says."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.members = Membership(self.clock, TTL_S)
        self.heard_at: float | None = None
        self.lease: str | None = None
        self.seq = -1

    @rule(number=st.integers(0, 3))
    def register(self, number: int) -> None:
        self.lease, self.seq, self.heard_at = f"l{number}", -1, self.clock.now
        self.members.register(1, "mac", "a", registration(), self.lease)

    @rule(seq=st.integers(0, 5), number=st.integers(0, 3))
    def renew(self, seq: int, number: int) -> None:
        found = self.members.renew(1, beat(seq, f"l{number}"))
        assert (found is not None) is (self.lease == f"l{number}")
        if found is not None and seq > self.seq:
            self.seq, self.heard_at = seq, self.clock.now

    @rule()
    def release(self) -> None:
        self.members.release(1)
        self.lease = None

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def the_state_follows_the_clock(self) -> None:
        member = self.members.get(1)
        if member is None or self.heard_at is None:
            return
        age_s = self.clock.now - self.heard_at
        expected = LeaseState.LIVE if age_s < TTL_S else LeaseState.SUSPECT
        if self.lease is None or age_s >= 2 * TTL_S:
            expected = LeaseState.EXPIRED
        assert self.members.state(member) is expected


test_leases_in_any_order = Leases.TestCase
test_leases_in_any_order.settings = settings(max_examples=60, stateful_step_count=25)


def test_two_agents_that_had_one_name_can_both_go(members: Membership) -> None:
    for row_id in (1, 2):  # the first one's row was given another name meanwhile
        members.register(row_id, "mac", f"a{row_id}", registration(), f"l{row_id}")
    members.merge(LeaseBook(version=1, agents=(record(1),)), read_at=0)
    members.merge(LeaseBook(version=2, agents=()), read_at=0)
    assert list(members) == []


@pytest.mark.parametrize(("seq", "lease_id"), [(4, "l2"), (3, "l1"), (2, "l1")])
def test_a_second_lease_of_one_start_counts_if_its_message_is_the_newer_one(
    members: Membership, seq: int, lease_id: str
) -> None:
    said = registration()
    members.register(1, "mac", "a", said.model_copy(update={"seq": 3}), "l1")
    later = record(registration=said.model_copy(update={"seq": seq}), lease_id="l2")
    members.merge(LeaseBook(version=1, agents=(later,)), read_at=0)
    member = members.get(1)
    assert member is not None
    assert member.lease_id == lease_id
