"""What is known of clusters: their models, whether they are cold, how much waits there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.backends.llmd.looks import Load, found_models, told_load
from router.domain import (
    Catalog,
    DeploymentEntry,
    Endpoint,
    EndpointId,
    ModelEntry,
    ModelName,
    PrefixRule,
    Probed,
    Provider,
    ServedModel,
    Zone,
    is_model_name,
)
from router.errors import ProviderNotConfigured
from router.fleet.clusters import Clusters, ClusterState
from router.fleet.membership import Membership
from router.fleet.registry import Fleet
from shared.contracts.agents import AgentModel
from shared.http.errors import ModelNotFound, UpstreamFailed
from tests.router.clusters import LLMD, cluster_endpoint, names, place, told
from tests.router.test_fleet_membership import FakeClock
from tests.router.test_fleet_registry import CLOUD, ENGINE, LOCAL, endpoint_of, entry, join, row

# ── the models ───────────────────────────────────────────────────────────────────────────────


def test_pods_that_list_different_adapters_are_taken_together(
    clusters: Clusters, clock: FakeClock
) -> None:
    llmd = EndpointId("llmd")
    assert clusters.learn(llmd, told("base", "one"))
    assert clusters.learn(llmd, told("base", "two"))
    assert names(clusters) == ["base", "one", "two"]
    for _ in range(20):
        clock.now += 10
        assert not clusters.learn(llmd, told("base", "one"))
    assert names(clusters) == ["base", "one", "two"]


@pytest.mark.parametrize(
    ("after", "state"),
    [
        (Probed(is_cold=True), ClusterState.COLD),
        (Probed(is_accepted=False), ClusterState.UNLISTED),
        (Probed(is_accepted=False, is_refused=True), ClusterState.REFUSED),
        (told(), ClusterState.READY),
        (None, ClusterState.UNREACHABLE),
    ],
)
def test_names_outlive_a_cluster_that_has_no_pods_or_can_not_be_asked(
    clusters: Clusters, after: Probed | None, state: ClusterState
) -> None:
    llmd = EndpointId("llmd")
    clusters.learn(llmd, told("m"))
    for _ in range(20):
        if after is None:
            clusters.miss(llmd)
        else:
            clusters.learn(llmd, after)
    assert names(clusters) == ["m"]
    assert dict(clusters) == {"llmd": state}


def test_what_waits_there_is_forgotten_with_the_answers(clusters: Clusters) -> None:
    llmd = EndpointId("llmd")
    clusters.learn(llmd, told("m", queued=7))
    assert clusters.queued(llmd) == 7
    clusters.learn(llmd, told("m"))
    assert clusters.queued(llmd) == 0
    clusters.learn(llmd, told("m", queued=7))
    clusters.miss(llmd)
    assert clusters.queued(llmd) == 0


# ── names that others have too ───────────────────────────────────────────────────────────────


def fleet_with(*models: ModelEntry, rules: tuple[PrefixRule, ...] = ()) -> Fleet:
    def any_endpoint(provider: Provider) -> Endpoint | None:
        return cluster_endpoint() if provider.name == "llmd" else endpoint_of(provider)

    fleet = Fleet(Membership(FakeClock(), 30.0), any_endpoint)
    providers = {each.name: each for each in (CLOUD, ENGINE, LOCAL, LLMD)}
    fleet.swap(Catalog(version=1, providers=providers, models=models, prefix_rules=rules))
    return fleet


def served_by(fleet: Fleet, name: str) -> list[str]:
    return [each.deployment.endpoint.id for each in fleet.resolve(name).candidates]


def test_a_name_of_the_registry_or_an_agent_is_not_the_clusters() -> None:
    fleet = fleet_with(entry("mine", row("engine"), aliases=("alias",)))
    join(fleet, 1, AgentModel(id="private", status="loaded"))
    fleet.learn(EndpointId("llmd"), told("mine", "alias", "private", "theirs"))
    assert served_by(fleet, "mine") == served_by(fleet, "alias") == ["engine"]
    assert served_by(fleet, "private") == ["agent:mac1"]
    assert served_by(fleet, "theirs") == ["llmd"]
    listed = {model.id: model.owned_by for model in fleet.models()}
    assert listed == {"mine": "engine", "private": "mac1", "theirs": "llmd"}


def test_a_name_that_the_cluster_serves_goes_there_and_by_no_prefix_to_a_cloud() -> None:
    fleet = fleet_with(rules=(PrefixRule("gpt-", "openai"),))
    assert served_by(fleet, "gpt-oss") == ["openai"]
    fleet.learn(EndpointId("llmd"), told("gpt-oss"))
    assert served_by(fleet, "gpt-oss") == ["llmd"]
    fleet.learn(EndpointId("llmd"), Probed(is_cold=True))
    assert served_by(fleet, "gpt-oss") == ["llmd"]
    assert served_by(fleet, "gpt-4") == ["openai"]


def test_a_name_of_a_cluster_without_an_address_goes_by_no_prefix_to_a_cloud() -> None:
    fleet = fleet_with(rules=(PrefixRule("gpt-", "openai"),))
    fleet.learn(EndpointId("llmd"), told("gpt-oss"))
    fleet._endpoint_of = lambda row: None if row.name == "llmd" else endpoint_of(row)
    fleet.swap(fleet.catalog)
    with pytest.raises(ProviderNotConfigured, match="LLMD_ENDPOINT"):
        fleet.resolve("gpt-oss")
    assert "gpt-oss" not in [model.id for model in fleet.models()]


def test_an_unknown_name_says_that_a_cluster_was_not_asked_yet() -> None:
    fleet = fleet_with()
    with pytest.raises(ModelNotFound, match="has not told yet"):
        fleet.resolve("m")
    fleet.learn(EndpointId("llmd"), told("other"))
    with pytest.raises(ModelNotFound) as known:
        fleet.resolve("m")
    assert "iir doctor" not in str(known.value)


@pytest.mark.parametrize(
    ("found", "is_told"),
    [
        (Probed(is_accepted=False), True),  # several pools: it will never list any
        (told(), True),
        (Probed(is_accepted=False, is_refused=True), False),
        (Probed(is_cold=True), False),
    ],
)
def test_a_hint_names_only_clusters_that_may_still_tell(found: Probed, is_told: bool) -> None:
    fleet = fleet_with()
    fleet.learn(EndpointId("llmd"), found)
    with pytest.raises(ModelNotFound) as unknown:
        fleet.resolve("m")
    assert ("iir doctor" not in str(unknown.value)) == is_told


def test_a_deployment_is_built_anew_when_the_clusters_models_change() -> None:
    fleet = fleet_with()
    llmd = EndpointId("llmd")
    for number in range(30):
        found = ServedModel(id="m", context_tokens=1000 + number)
        fleet.learn(llmd, Probed(models=(found, ServedModel(id=f"other-{number}"))))
        [candidate] = fleet.resolve("m").candidates
        assert candidate.deployment.context_tokens == 1000 + number
        assert candidate.deployment.upstream_name == "m"


# ── load and cold ────────────────────────────────────────────────────────────────────────────


def test_queue_and_cold_count_from_the_next_request_on() -> None:
    rows = (row("llmd"), row("engine"))
    fleet = fleet_with(entry("m", *rows))
    llmd = EndpointId("llmd")
    for queued, is_cold in ((0, False), (9, False), (0, True), (3, False)):
        fleet.learn(llmd, told("m", queued=queued, is_cold=is_cold))
        found = {c.deployment.endpoint.id: c for c in fleet.resolve("m").candidates}
        assert found[llmd].load.queued == queued
        assert found[llmd].is_suspect == is_cold
        assert not found[EndpointId("engine")].is_suspect


class Untouchable:
    """Fails whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a request of another model asked the clusters: {name}")


def test_requests_for_other_models_do_not_ask_the_clusters() -> None:
    fleet = fleet_with(entry("m", row("engine"), row("openai")))
    join(fleet, 1, AgentModel(id="private", status="loaded"))
    fleet.resolve("m")
    fleet.clusters = Untouchable()  # type: ignore[assignment] # that is the point
    for name, places in (("m", ["engine", "openai"]), ("private", ["agent:mac1"])):
        for _ in range(2):
            found = fleet.resolve(name).candidates
            assert [one.deployment.endpoint.id for one in found] == places


# ── what a look shows ────────────────────────────────────────────────────────────────────────


def listing(*cards: object) -> bytes:
    return json.dumps({"object": "list", "data": cards}).encode()


def test_a_list_as_vllm_writes_it() -> None:
    found = found_models(
        listing(
            {"id": "org/base", "created": 17, "max_model_len": 4096, "parent": None, "root": "x"},
            {"id": "tuned", "created": 18, "max_model_len": None, "parent": "org/base"},
            {"id": "org/base", "created": 99},
        )
    )
    assert found == (
        ServedModel(id="org/base", created_at=17, context_tokens=4096),
        ServedModel(id="tuned", created_at=18, base_model="org/base"),
    )


@pytest.mark.parametrize("number", [-1, 0, 2**53, 10**30, 1e300])
def test_numbers_that_make_no_sense_are_no_numbers(number: float) -> None:
    found = found_models(listing({"id": "m", "created": number, "max_model_len": number}))
    assert found == (ServedModel(id="m"),)


def test_names_that_nobody_could_send_are_left_out() -> None:
    bad = ["", "two words", "line\nbreak", "x" * 257, "bell\a"]
    found = found_models(listing(*({"id": name} for name in bad), {"id": "good", "parent": "a b"}))
    assert found == (ServedModel(id="good"),)


def test_a_list_without_end_is_cut() -> None:
    assert len(found_models(listing(*({"id": f"m{n}"} for n in range(10_000))))) == 4096


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"data":{}}',
        b'{"data":[{"name":"m"}]}',
        b'{"data":[{"id":7}]}',
        b'{"data":[{"id":"\xff"}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_list_of_models_is_no_gateway(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        found_models(body)


@given(st.lists(st.text(max_size=20), max_size=20))
def test_any_list_gives_names_that_clients_can_send_each_once(ids: list[str]) -> None:
    found = [model.id for model in found_models(listing(*({"id": name} for name in ids)))]
    assert found == list(dict.fromkeys(filter(is_model_name, ids)))


METRICS = """\
# HELP llm_d_epp_ready_endpoints The number of ready endpoints.
# TYPE llm_d_epp_ready_endpoints gauge
llm_d_epp_ready_endpoints{name="llm-d"} 4
llm_d_epp_average_queue_size{name="llm-d"} 2.5
llm_d_epp_flow_control_queue_size{fairness_id="a",priority="0"} 3
llm_d_epp_flow_control_queue_size{fairness_id="b",priority="0"} 4
llm_d_epp_flow_control_queue_size_bytes{fairness_id="b"} 1000000
inference_pool_average_queue_size{name="llm-d"} 2.5
inference_pool_ready_pods{name="llm-d"} 4
"""


@pytest.mark.parametrize(
    ("text", "load"),
    [
        (METRICS, Load(17)),
        (METRICS.replace("llm_d_epp_", "renamed_"), Load(10)),
        ('llm_d_epp_ready_pods{name="x"} 0\n', Load(0, is_cold=True)),
        ('llm_d_epp_average_queue_size{name="x"} 3\n', Load(3)),
        ("llm_d_epp_average_queue_size 1e300\nllm_d_epp_ready_endpoints 9\n", Load(1_000_000)),
        ("llm_d_epp_average_queue_size NaN\n", Load(0)),
        ("llm_d_epp_average_queue_size -3\n", Load(0)),
        ("other 1\n", Load()),
        ("", Load()),
    ],
)
def test_the_load_that_a_picker_tells(text: str, load: Load) -> None:
    assert told_load(text.encode()) == load


@given(st.binary(max_size=200))
def test_any_metrics_are_a_load(text: bytes) -> None:
    found = told_load(text + b"\nllm_d_epp_average_queue_size " + text)
    assert found.queued is None or 0 <= found.queued <= 1_000_000


def test_entries_name_their_clusters() -> None:
    clusters = Clusters()
    clusters.keep([place("east"), place("west")])
    for name in ("east", "west"):
        clusters.learn(EndpointId(name), told("m"))
    found = clusters.entry("m")
    assert found == ModelEntry(
        id=ModelName("m"),
        deployments=tuple(
            DeploymentEntry(provider=name, upstream_name="m") for name in ("east", "west")
        ),
    )


def test_what_is_served_inside_goes_no_further_out_because_a_cluster_there_lists_it() -> None:
    clusters = Clusters()
    clusters.keep([place("burst", zone=Zone.CLOUD), place("inside")])
    clusters.learn(EndpointId("burst"), told("m", "big"))
    clusters.learn(EndpointId("inside"), told("m"))
    places = {
        found.id: [place.provider for place in found.deployments] for found in clusters.entries()
    }
    assert places == {"m": ["inside"], "big": ["burst"]}


def test_a_list_that_dates_its_models_anew_changes_nothing(clusters: Clusters) -> None:
    llmd = EndpointId("llmd")
    for created_at in (5, 6, 7):
        models = (ServedModel(id="m", created_at=created_at),)
        assert clusters.learn(llmd, Probed(models=models)) == (created_at == 5)
    found = clusters.entry("m")
    assert found is not None
    assert found.created_at == 5
