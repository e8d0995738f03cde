"""Agents that fall silent: one is lost; where most do at once the router doubts itself first."""

from __future__ import annotations

import pytest

from router.domain import EndpointId, LeaseBook
from router.fleet.membership import LeaseState, Membership
from router.fleet.prober import Prober
from router.fleet.registry import Fleet
from shared.http.errors import ModelNotFound, UpstreamUnreachable
from tests.router.test_fleet_membership import FakeClock, record, registration
from tests.router.test_fleet_prober import Asked
from tests.router.test_lost_agents import TTL_S, beat, register


class Site:
    """Four agents, all of them just heard, and a prober."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.members = Membership(self.clock, TTL_S)
        self.backend = Asked()
        self.fleet = Fleet(self.members, lambda _: None)
        self.prober = Prober(self.fleet, {"openai": self.backend})
        for row_id in range(1, 5):
            register(self.members, row_id)
        self.fleet.patch()

    def wait(self, seconds: float, *heard: int) -> None:
        self.clock.now += seconds
        for row_id in heard:
            beat(self.members, row_id, int(self.clock.now))

    def states(self) -> str:
        """Return the first letters of the states: live, suspect, expired, gone."""
        return "".join(self.members.state(member).value[0] for member in self.members)


@pytest.fixture
def site() -> Site:
    return Site()


async def test_a_few_silent_agents_are_lost_and_nobody_is_probed(site: Site) -> None:
    site.wait(2 * TTL_S, 3, 4)
    assert site.states() == "eell"
    await site.prober.look_at_silent()
    assert site.backend.asked == []


async def test_most_at_once_stay_suspect_until_a_probe_tells(site: Site) -> None:
    site.wait(TTL_S + 5, 4)
    site.wait(TTL_S - 5)
    assert site.states() == "sssl"
    assert not any(site.members.is_lost(member) for member in site.members)
    assert len(site.fleet.resolve("tiny").candidates) == 4
    site.backend.answers["agent:mac1"] = UpstreamUnreachable("refused")
    await site.prober.look_at_silent()
    assert sorted(site.backend.asked) == ["agent:mac1", "agent:mac2", "agent:mac3"]
    assert site.states() == "essl"
    await site.prober.look_at_silent()
    assert len(site.backend.asked) == 3  # not in a hurry
    site.wait(TTL_S - 1, 3)
    assert site.states() == "esls"
    site.wait(1)
    assert site.states()[:3] == "eel"


async def test_a_probe_answered_again_and_again_keeps_an_agent_that_can_t_reach_the_router(
    site: Site,
) -> None:
    site.wait(2 * TTL_S)
    for _ in range(20):
        await site.prober.look_at_silent()
        assert site.states() == "ssss"
        site.wait(TTL_S / 2)
    assert len(site.backend.asked) == 80


async def test_who_does_not_take_the_credential_is_another_one(site: Site) -> None:
    site.backend.refused.add("t" * 32)
    site.wait(2 * TTL_S)
    assert site.states() == "ssss"
    await site.prober.look_at_silent()
    assert site.states() == "eeee"


def test_doubt_ends_after_one_ttl_without_a_probe(site: Site) -> None:
    site.wait(10 * TTL_S)  # the router was stopped for long
    assert site.states() == "ssss"
    site.wait(TTL_S - 0.1)
    assert site.states() == "ssss"
    site.wait(0.1)
    assert site.states() == "eeee"


def test_one_agent_alone_is_simply_lost() -> None:
    clock = FakeClock()
    members = Membership(clock, TTL_S)
    register(members, 1)
    clock.now += 2 * TTL_S
    assert [members.state(member) for member in members] == [LeaseState.EXPIRED]


def test_agents_that_were_lost_long_ago_have_no_say(site: Site) -> None:
    site.wait(2 * TTL_S, 4)
    assert site.states() == "sssl"
    site.wait(2 * TTL_S, 4)
    assert site.states() == "eeel"
    site.wait(2 * TTL_S)
    assert site.states() == "eeee"


def test_what_is_heard_while_a_probe_runs_counts_more(site: Site) -> None:
    site.wait(2 * TTL_S)
    [first, *_] = site.members.doubtful()
    site.wait(0, first.row_id)
    site.members.vouch(first, is_there=False)
    assert site.states() == "lsss"


def test_a_failed_call_puts_an_agent_last_until_it_is_heard(site: Site) -> None:
    site.members.doubt("nobody")
    assert site.states() == "llll"
    for _ in range(2):
        site.members.doubt("mac1")
        assert site.states() == "slll"
    assert [c.is_suspect for c in site.fleet.resolve("tiny").candidates] == [True, *[False] * 3]
    site.wait(1, 1)
    assert site.states() == "llll"


def test_after_a_day_an_agents_names_are_forgotten(site: Site) -> None:
    site.wait(86_400, 4)
    site.fleet.forget_gone()
    assert site.states() == "gggl"
    assert len(site.fleet.resolve("tiny").candidates) == 1
    site.wait(86_400)
    site.fleet.forget_gone()
    assert site.fleet.models() == []
    with pytest.raises(ModelNotFound, match="does not exist"):
        site.fleet.resolve("tiny")
    site.wait(0, 2)
    site.fleet.forget_gone()
    [found] = site.fleet.resolve("tiny").candidates
    assert found.deployment.endpoint.id == EndpointId("agent:mac2")


@pytest.mark.parametrize(
    ("written_s", "expected"),
    [(0, "live"), (59, "live"), (60, "suspect"), (10**6, "suspect"), (-3600, "suspect")],
)
def test_a_router_that_starts_trusts_what_was_written_lately(written_s: int, expected: str) -> None:
    clock = FakeClock()
    members = Membership(clock, TTL_S, wall=lambda: 1e9)
    book = LeaseBook(1, (record(renewed_at=int(1e9) - written_s, registration=registration()),))
    members.merge(book, read_at=clock.now)
    [member] = members
    assert members.state(member).value == expected
    clock.now += 2 * TTL_S
    assert members.state(member) is LeaseState.EXPIRED
