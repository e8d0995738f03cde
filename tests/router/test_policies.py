"""The default policy: sound before suspect, then priority, then the least load per weight."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from router.domain import (
    Candidate,
    Deployment,
    Endpoint,
    EndpointId,
    Load,
    ModelName,
    Outcome,
    RequestFacts,
    Zone,
)
from router.policies import POLICIES
from router.policies.least_in_flight import LeastInFlight

FACTS = RequestFacts(request_id="r", model=ModelName("m"), stream=False, path="/chat/completions")


def candidate(
    name: str,
    *,
    priority: int = 100,
    weight: float = 1.0,
    in_flight: int = 0,
    queued: int = 0,
    is_suspect: bool = False,
) -> Candidate:
    endpoint = Endpoint(
        id=EndpointId(name), base_url="http://127.0.0.1:1/v1", backend="openai", zone=Zone.LOCAL
    )
    deployment = Deployment(endpoint=endpoint, upstream_name="m", priority=priority, weight=weight)
    return Candidate(deployment, Load(in_flight, queued), is_suspect)


def order(*candidates: Candidate, seed: int = 0) -> list[str]:
    ranked = LeastInFlight(Random(seed)).rank(FACTS, candidates)
    return [one.candidate.deployment.endpoint.id for one in ranked]


def test_it_is_found_by_its_name() -> None:
    assert isinstance(POLICIES["least_in_flight"](Random(0)), LeastInFlight)


def test_one_candidate_is_the_only_one() -> None:
    only = candidate("a")
    ranked = LeastInFlight(Random(0)).rank(FACTS, [only])
    assert [(one.candidate, one.reason) for one in ranked] == [(only, "only")]


def test_no_candidate_is_no_ranking() -> None:
    assert list(LeastInFlight(Random(0)).rank(FACTS, [])) == []


def test_what_counts_first() -> None:
    suspect = candidate("suspect", priority=1, is_suspect=True)
    preferred = candidate("preferred", priority=10, in_flight=50)
    idle = candidate("idle", priority=20)
    assert order(suspect, idle, preferred) == ["preferred", "idle", "suspect"]


def test_load_is_in_flight_and_queued_per_weight() -> None:
    heavy = candidate("heavy", weight=4, in_flight=4, queued=2)
    light = candidate("light", weight=1, in_flight=1, queued=1)
    assert order(light, heavy) == ["heavy", "light"]
    assert order(candidate("zero", weight=0, in_flight=1), light)[0] == "light"


def test_ties_are_broken_by_the_dice_it_was_given() -> None:
    tied = [candidate(name) for name in "abcd"]
    assert order(*tied, seed=1) == order(*tied, seed=1)
    assert len({tuple(order(*tied, seed=seed)) for seed in range(20)}) > 5


@given(
    st.lists(
        st.builds(
            candidate,
            name=st.uuids().map(str),
            priority=st.integers(0, 3),
            weight=st.floats(0, 10),
            in_flight=st.integers(0, 9),
            queued=st.integers(0, 9),
            is_suspect=st.booleans(),
        ),
        max_size=8,
    ),
    st.integers(),
)
def test_a_ranking_is_a_permutation(candidates: list[Candidate], seed: int) -> None:
    policy = LeastInFlight(Random(seed))
    ranked = [one.candidate for one in policy.rank(FACTS, candidates)]
    assert sorted(map(id, ranked)) == sorted(map(id, candidates))
    keys = [(c.is_suspect, c.deployment.priority) for c in ranked]
    assert keys == sorted(keys)


def ranked(name: str, times: int, *candidates: Candidate) -> list[list[str]]:
    policy = POLICIES[name](Random(0))
    orders = [policy.rank(FACTS, candidates) for _ in range(times)]
    return [[one.candidate.deployment.endpoint.id for one in order] for order in orders]


def test_priority_is_a_fixed_order() -> None:
    busy = candidate("b", priority=10, in_flight=99)
    suspect = candidate("s", priority=1, is_suspect=True)
    candidates = (suspect, candidate("c", priority=20), candidate("a", priority=10), busy)
    assert ranked("priority", 2, *candidates) == [["a", "b", "c", "s"]] * 2
    assert ranked("priority", 1) == [[]]


def test_round_robin_lets_siblings_take_turns() -> None:
    candidates = [candidate(name) for name in "abc"]
    later = candidate("later", priority=200)
    suspect = candidate("suspect", priority=1, is_suspect=True)
    orders = ranked("round_robin", 10, *candidates, later, suspect)
    assert {order[0] for order in orders} == {"a", "b", "c"}
    assert all(order[3:] == ["later", "suspect"] for order in orders)
    assert ranked("round_robin", 1) == [[]]


def test_power_of_two_takes_the_less_loaded_of_two() -> None:
    busy, idle = candidate("busy", in_flight=9), candidate("idle", queued=1)
    assert ranked("power_of_two", 20, busy, idle) == [["idle", "busy"]] * 20
    heavy = candidate("heavy", weight=8, in_flight=9)
    assert ranked("power_of_two", 20, heavy, idle) == [["heavy", "idle"]] * 20
    crowd = [candidate(str(load), in_flight=load) for load in range(8)]
    firsts = [order[0] for order in ranked("power_of_two", 200, *crowd)]
    assert "7" not in firsts
    assert len(set(firsts)) > 4


def test_power_of_two_keeps_to_priority_and_soundness() -> None:
    preferred = candidate("preferred", priority=1, in_flight=9)
    later = candidate("later", priority=2)
    suspect = candidate("suspect", priority=0, is_suspect=True)
    expected = ["preferred", "later", "suspect"]
    assert ranked("power_of_two", 20, later, suspect, preferred) == [expected] * 20
    assert ranked("power_of_two", 1, preferred) == [["preferred"]]
    assert ranked("power_of_two", 1) == [[]]


def test_it_learns_nothing() -> None:
    policy = LeastInFlight(Random(0))
    outcome = Outcome(endpoint=EndpointId("a"), attempt=1, status=200, ttft_s=None, total_s=1.0)
    policy.observe(FACTS, outcome)
    policy.forget(EndpointId("a"))
    assert order(candidate("a")) == ["a"]
