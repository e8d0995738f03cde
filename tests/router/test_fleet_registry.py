"""Model name → candidates, and what the error is if there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from router.domain import (
    Catalog,
    DeploymentEntry,
    Endpoint,
    EndpointId,
    ModelEntry,
    ModelName,
    PrefixRule,
    Provider,
    Zone,
)
from router.errors import AgentUnavailable, NoEndpoint, ProviderNotConfigured, ZoneRefused
from router.fleet.membership import Membership
from router.fleet.registry import Fleet
from shared.contracts.agents import AgentModel, Heartbeat, Queue, Registration
from shared.http.errors import ModelNotFound, ModelNotPulled, UnsupportedApi
from tests.router.test_fleet_membership import FakeClock

CLOUD = Provider(
    name="openai", dialect="openai", base_url="https://x", zone=Zone.CLOUD, key_env="X_KEY"
)
ENGINE = Provider(name="engine", dialect="openai", base_url="http://x", zone=Zone.LOCAL)
LOCAL = Provider(name="local", dialect="agent", base_url="", zone=Zone.LOCAL)


def endpoint_of(provider: Provider) -> Endpoint | None:
    if provider.name == "keyless":
        return None
    return Endpoint(
        id=EndpointId(provider.name), base_url="http://x/v1", backend="openai", zone=provider.zone
    )


def row(provider: str, upstream: str = "m", **fields: Any) -> DeploymentEntry:
    return DeploymentEntry(provider=provider, upstream_name=upstream, **fields)


def entry(name: str, *rows: DeploymentEntry, aliases: tuple[str, ...] = ()) -> ModelEntry:
    return ModelEntry(id=ModelName(name), aliases=aliases, created_at=7, deployments=rows)


def catalog(
    *models: ModelEntry,
    rules: tuple[PrefixRule, ...] = (),
    providers: tuple[Provider, ...] = (CLOUD, ENGINE, LOCAL),
) -> Catalog:
    return Catalog(
        version=1,
        providers={provider.name: provider for provider in providers},
        models=models,
        prefix_rules=rules,
    )


@pytest.fixture
def fleet(clock: FakeClock) -> Fleet:
    return Fleet(Membership(clock, 30.0), endpoint_of)


def join(fleet: Fleet, row_id: int, *models: AgentModel, waiting: int = 0) -> None:
    registration = Registration(
        incarnation=row_id,
        name="label",
        base_url=f"http://127.0.0.1:{5000 + row_id}",
        access_token="t" * 32,
        models=models,
    )
    fleet.membership.register(row_id, f"mac{row_id}", f"id{row_id}", registration, "l")
    beat = Heartbeat(lease_id="l", incarnation=row_id, seq=1, queue=Queue(waiting=waiting))
    fleet.membership.renew(row_id, beat)
    fleet.patch()


def endpoints(fleet: Fleet, name: str, zone: Zone | None = None) -> list[str]:
    return [c.deployment.endpoint.id for c in fleet.resolve(name, zone).candidates]


def test_a_model_and_its_aliases(fleet: Fleet) -> None:
    deployed = row("engine", "up", priority=3, weight=2.0, context_tokens=9, capabilities=("chat",))
    fleet.swap(catalog(entry("m", deployed, row("openai"), aliases=("a", "b"))))
    for name in ("m", "a", "b"):
        found = fleet.resolve(name)
        assert found.model == "m"
        first, second = (candidate.deployment for candidate in found.candidates)
        assert (first.endpoint.id, second.endpoint.id) == ("engine", "openai")
        assert (first.upstream_name, first.priority, first.weight) == ("up", 3, 2.0)
        assert (first.context_tokens, first.capabilities) == (9, ("chat",))


def test_a_models_own_name_beats_another_models_alias(fleet: Fleet) -> None:
    fleet.swap(catalog(entry("m", row("engine"), aliases=("n",)), entry("n", row("openai"))))
    assert endpoints(fleet, "n") == ["openai"]


def test_the_longest_prefix_wins(fleet: Fleet) -> None:
    rules = (PrefixRule("g", "engine"), PrefixRule("gpt-", "openai"), PrefixRule("z", "gone"))
    fleet.swap(catalog(rules=rules))
    assert endpoints(fleet, "gpt-4.1") == ["openai"]
    assert endpoints(fleet, "gemma") == ["engine"]
    assert fleet.resolve("gemma").candidates[0].deployment.upstream_name == "gemma"
    for name in ("unknown", "z1", ""):
        with pytest.raises(ModelNotFound):
            fleet.resolve(name)


def test_an_empty_fleet_knows_nothing(fleet: Fleet) -> None:
    with pytest.raises(ModelNotFound, match="/v1/models") as refused:
        fleet.resolve("m")
    assert refused.value.param == "model"
    assert fleet.models() == []


def test_why_there_is_no_candidate(fleet: Fleet) -> None:
    keyless = Provider(
        name="keyless", dialect="openai", base_url="https://x", zone=Zone.CLOUD, key_env="SOME_KEY"
    )
    fleet.swap(
        catalog(
            entry("nowhere"),
            entry("gone", row("vanished")),
            entry("unpaid", row("keyless")),
            entry("at-home", row("local", "tiny")),
            providers=(CLOUD, LOCAL, keyless),
        )
    )
    for name, error in (
        ("nowhere", NoEndpoint),
        ("gone", NoEndpoint),
        ("unpaid", ProviderNotConfigured),
        ("at-home", AgentUnavailable),
    ):
        with pytest.raises(error) as refused:
            fleet.resolve(name)
        assert refused.value.status == 503
    with pytest.raises(ProviderNotConfigured, match="SOME_KEY"):
        fleet.resolve("unpaid")


def test_one_candidate_is_enough_whatever_the_others_lack(fleet: Fleet) -> None:
    fleet.swap(catalog(entry("m", row("vanished"), row("local", "tiny"), row("engine"))))
    assert endpoints(fleet, "m") == ["engine"]


def test_a_zone_confines_and_fails_closed(fleet: Fleet) -> None:
    fleet.swap(catalog(entry("m", row("engine"), row("openai")), entry("c", row("openai"))))
    assert endpoints(fleet, "m", Zone.LOCAL) == ["engine"]
    assert endpoints(fleet, "m", Zone.CLOUD) == ["openai"]
    for name, zone in (("m", Zone.CLUSTER), ("c", Zone.LOCAL)):
        with pytest.raises(ZoneRefused, match=zone.value):
            fleet.resolve(name, zone)


def test_agents_models_are_found_by_id_and_alias(fleet: Fleet) -> None:
    tiny = AgentModel(id="tiny", aliases=("default",), max_in_flight=2, context_tokens=5)
    join(fleet, 1, tiny, waiting=4)
    for name in ("tiny", "default"):
        found = fleet.resolve(name)
        assert found.model == "tiny"
        deployment = found.candidates[0].deployment
        assert deployment.endpoint.id == "agent:mac1"
        assert deployment.endpoint.base_url == "http://127.0.0.1:5001/v1"
        assert deployment.endpoint.zone is Zone.LOCAL
        assert deployment.endpoint.credential == "t" * 32
        assert "t" * 32 not in repr(deployment)
        assert (deployment.max_in_flight, deployment.context_tokens) == (2, 5)
        assert found.candidates[0].load.queued == 4
    join(fleet, 2, AgentModel(id="tiny"))
    assert endpoints(fleet, "tiny") == ["agent:mac1", "agent:mac2"]


def test_an_agent_says_what_its_engine_speaks_and_how_much_it_takes(fleet: Fleet) -> None:
    join(fleet, 1, AgentModel(id="m"), AgentModel(id="n", apis=("messages", "of-a-newer-peer")))
    join(fleet, 2, AgentModel(id="m", apis=("chat", "responses"), max_in_flight=2))
    found = {c.deployment.endpoint.id: c.deployment for c in fleet.resolve("m").candidates}
    assert [found[name].max_in_flight for name in sorted(found)] == [None, 2]
    assert len({deployment.pool for deployment in found.values()}) == 2
    (only,) = fleet.resolve("m", path="/responses").candidates
    assert only.deployment.endpoint.id == "agent:mac2"
    assert fleet.resolve("n", path="/messages/count_tokens").candidates
    for name, path in (("m", "/messages"), ("n", "/chat/completions")):
        with pytest.raises(UnsupportedApi, match=path):
            fleet.resolve(name, path=path)


def test_an_agent_that_drops_a_model_is_not_asked_for_it(fleet: Fleet) -> None:
    join(fleet, 1, AgentModel(id="a", aliases=("x",)), AgentModel(id="b", aliases=("x",)))
    join(fleet, 2, AgentModel(id="a"))
    join(fleet, 1, AgentModel(id="b"))
    assert endpoints(fleet, "a") == ["agent:mac2"]
    with pytest.raises(ModelNotFound):
        fleet.resolve("x")
    fleet.patch()
    assert endpoints(fleet, "b") == ["agent:mac1"]


def test_a_model_without_weights_is_said_to_be_so(fleet: Fleet, clock: FakeClock) -> None:
    join(fleet, 1, AgentModel(id="big", is_pulled=False, pull_command="do this"))
    with pytest.raises(ModelNotPulled, match="do this"):
        fleet.resolve("big")
    join(fleet, 1, AgentModel(id="big", is_pulled=False, status="downloading"))
    with pytest.raises(ModelNotPulled, match=r"'big' are being pulled\. `iir-agent ps`"):
        fleet.resolve("big")
    clock.now += 20
    join(fleet, 2, AgentModel(id="big"))
    assert endpoints(fleet, "big") == ["agent:mac2"]
    # the one that has it is gone, the other could pull it: that is the better advice
    clock.now += 31
    fleet.membership.renew(1, Heartbeat(lease_id="l", incarnation=1, seq=2))
    clock.now += 35
    fleet.membership.renew(1, Heartbeat(lease_id="l", incarnation=1, seq=3))
    with pytest.raises(ModelNotPulled):
        fleet.resolve("big")


def test_a_lost_agent_is_unavailable_not_unknown(fleet: Fleet, clock: FakeClock) -> None:
    join(fleet, 1, AgentModel(id="tiny"))
    clock.now += 61
    with pytest.raises(AgentUnavailable) as refused:
        fleet.resolve("tiny")
    assert refused.value.retry_after_s is not None


@pytest.mark.parametrize("name", ["tiny", "default"])
def test_what_an_agent_offers_never_goes_to_a_cloud_by_a_row_of_its_name(
    fleet: Fleet, clock: FakeClock, name: str
) -> None:
    join(fleet, 1, AgentModel(id="tiny", aliases=("default",)))
    fleet.swap(catalog(entry(name, row("openai"))))
    assert endpoints(fleet, name) == ["agent:mac1"]
    clock.now += 61
    with pytest.raises(AgentUnavailable):
        fleet.resolve(name)


def test_a_name_of_its_own_may_span_an_agent_and_a_cloud(fleet: Fleet) -> None:
    join(fleet, 1, AgentModel(id="tiny"))
    fleet.swap(catalog(entry("either", row("local", "tiny"), row("openai"))))
    assert set(endpoints(fleet, "either")) == {"agent:mac1", "openai"}


@pytest.mark.parametrize(("priority", "expected"), [(100, 50), (10, 10)])
def test_two_ways_to_one_place_are_one(fleet: Fleet, priority: int, expected: int) -> None:
    join(fleet, 1, AgentModel(id="tiny"))
    rows = (row("local", "tiny", priority=priority), row("engine"))
    fleet.swap(catalog(entry("tiny", *rows)))
    found = fleet.resolve("tiny").candidates
    assert [c.deployment.endpoint.id for c in found] == ["agent:mac1", "engine"]
    assert found[0].deployment.priority == expected


def test_what_is_on_its_way_counts_as_load(fleet: Fleet) -> None:
    fleet.swap(catalog(entry("m", row("engine"))))
    deployment = fleet.resolve("m").candidates[0].deployment
    fleet.enter(deployment)
    fleet.enter(deployment)
    assert fleet.in_flight() == 2
    assert fleet.resolve("m").candidates[0].load.in_flight == 2
    fleet.leave(deployment)
    fleet.leave(deployment)
    assert fleet.in_flight() == 0


def test_models_are_listed_once_the_catalog_first(fleet: Fleet, clock: FakeClock) -> None:
    fleet.swap(catalog(entry("m", row("engine", context_tokens=3)), entry("empty")))
    join(fleet, 1, AgentModel(id="m", status="loaded"), AgentModel(id="t", status="unloaded"))
    join(fleet, 2, AgentModel(id="t", status="loaded"))
    listed = {model.id: model for model in fleet.models()}
    assert list(listed) == ["empty", "m", "t"]
    assert (listed["m"].owned_by, listed["m"].status, listed["m"].context_tokens) == (
        "engine",
        None,
        3,
    )
    assert listed["empty"].owned_by == "none"
    assert (listed["t"].owned_by, listed["t"].status) == ("mac2", "loaded")
    clock.now += 40
    for row_id in (3, 4, 5):  # most of the fleet is well, or the router would doubt itself
        join(fleet, row_id, AgentModel(id="other"))
    clock.now += 21
    assert {model.status for model in fleet.models() if model.id == "t"} == {"unavailable"}


def test_a_swap_forgets_what_is_gone(fleet: Fleet) -> None:
    seen: list[str] = []

    def remember(provider: Provider) -> Endpoint | None:
        seen.append(provider.name)
        return endpoint_of(provider)

    resolver: Callable[[Provider], Endpoint | None] = remember
    other = Fleet(fleet.membership, resolver)
    other.swap(catalog(entry("m", row("engine"))))
    assert seen == ["openai", "engine"]
    assert endpoints(other, "m") == ["engine"]
    other.swap(Catalog(version=2))
    assert other.catalog.version == 2
    with pytest.raises(ModelNotFound):
        other.resolve("m")
