"""What routers remember of clusters: for how long, where a cluster moved, and over a restart."""

from __future__ import annotations

import pytest

from router.domain import EndpointId, KnownModel, Probed, ServedModel
from router.fleet.clusters import Clusters, ClusterState
from router.store.known_models import forget_models, list_known_models
from shared.kit.clock import wall_time
from tests.router.clusters import LLMD, Place, names, place, told
from tests.router.gateway import cluster
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, chat, error_of
from tests.router.test_fleet_membership import FakeClock
from tests.router.test_fleet_registry import CLOUD


def test_a_name_that_lists_lack_is_shown_no_longer_and_kept_for_a_day(
    clusters: Clusters, clock: FakeClock
) -> None:
    llmd = EndpointId("llmd")
    clusters.learn(llmd, told("base", "private"))
    clock.now += 301
    clusters.learn(llmd, told("base"))
    assert names(clusters) == ["base"]
    assert clusters.entry("private") is not None
    for _ in range(23):
        clock.now += 3600
        clusters.learn(llmd, told("base"))
    assert clusters.entry("private") is not None
    clusters.learn(llmd, told("base", "private"))
    assert names(clusters) == ["base", "private"], "it is back, and counts as new"
    for _ in range(24):
        assert clusters.entry("private") is not None
        clock.now += 3600
        clusters.learn(llmd, told("base"))
    assert clusters.entry("private") is None


def test_days_without_an_answer_are_no_days_of_lists(clusters: Clusters, clock: FakeClock) -> None:
    llmd = EndpointId("llmd")
    clusters.learn(llmd, told("base", "private"))
    for _ in range(3):
        clock.now += 24 * 3600
        clusters.miss(llmd)
    clusters.learn(llmd, told("base"))
    assert clusters.entry("private") is not None


def test_a_cluster_that_lists_new_names_for_ever_takes_no_memory_for_ever(
    clusters: Clusters, clock: FakeClock
) -> None:
    for number in range(5):
        clock.now += 1
        clusters.learn(
            EndpointId("llmd"), told("base", *(f"{number}-{each}" for each in range(4000)))
        )
    assert len(names(clusters)) == 8192
    assert {"base", "4-0", "4-3999"} <= set(names(clusters)), "the newest stay"


@pytest.mark.parametrize("elsewhere", [place(url="http://y/v1"), (LLMD, None)])
def test_a_cluster_that_moved_or_lost_its_address_keeps_its_names(
    clusters: Clusters, elsewhere: Place
) -> None:
    llmd = EndpointId("llmd")
    clusters.learn(llmd, told("m"))
    clusters.keep([place()])
    assert dict(clusters) == {"llmd": ClusterState.READY}
    clusters.keep([elsewhere])
    assert clusters.entry("m") is not None
    assert clusters.is_new(llmd), "what is there now has to be asked"
    # nobody can ask for what has no address, but it does not fall to anybody else either
    assert names(clusters) == (["m"] if elsewhere[1] else [])
    clusters.keep([(CLOUD, None)])
    assert dict(clusters) == {}
    assert clusters.entry("m") is None
    assert not clusters.learn(llmd, told("m")), "it is gone"


# ── what outlives the process ────────────────────────────────────────────────────────────────


def save(clusters: Clusters, kept: dict[str, KnownModel]) -> int:
    """Write as the registry does; return how many names were written or deleted."""
    count = 0
    for change in clusters.unsaved():
        for known in change.known:
            kept[known.model.id] = known
        for name in change.gone:
            del kept[name]
        count += len(change.known) + len(change.gone)
        clusters.mark_saved(change, is_saved=True)
    return count


def test_what_the_registry_lost_is_written_anew(clusters: Clusters, clock: FakeClock) -> None:
    """A restored file, a provider that was removed and added at once, another router that forgot."""
    kept: dict[str, KnownModel] = {}
    llmd = EndpointId("llmd")
    clusters.learn(llmd, told("m"))
    assert save(clusters, kept) == 1
    kept.clear()
    clock.now += 60
    clusters.learn(llmd, told("m"))
    assert save(clusters, kept) == 0, "each list is no write"
    clusters.keep([place()])
    assert save(clusters, kept) == 1, "the registry has changed"
    kept.clear()
    clock.now += 3600
    clusters.learn(llmd, told("m"))
    assert save(clusters, kept) == 1, "an hour has passed"
    assert set(kept) == {"m"}


def test_a_model_that_moved_is_asked_for_where_it_is(clusters: Clusters, clock: FakeClock) -> None:
    """The cluster that had it keeps the name inside, and would answer 404."""
    clusters.keep([place("a"), place("b")])
    a, b = EndpointId("a"), EndpointId("b")
    clusters.learn(a, told("base", "moved"))
    clusters.learn(b, told("base", "moved"))
    assert asked(clusters, "moved") == ["a", "b"]
    for _ in range(2):
        clock.now += 301
        clusters.learn(a, told("base"))
        clusters.learn(b, told("base", "moved"))
    assert asked(clusters, "moved") == ["b"]
    assert asked(clusters, "base") == ["a", "b"]
    for _ in range(2):
        clock.now += 301
        clusters.learn(b, told("base"))
    assert asked(clusters, "moved") == ["a", "b"], "nobody lists it: it stays inside all the same"


def asked(clusters: Clusters, name: str) -> list[str]:
    entry = clusters.entry(name)
    return [] if entry is None else [each.provider for each in entry.deployments]


def test_what_was_seen_counts_after_a_restart(clusters: Clusters, clock: FakeClock) -> None:
    kept: dict[str, KnownModel] = {}
    tuned = ServedModel(id="tuned", created_at=5, context_tokens=4096, base_model="base")
    clusters.learn(EndpointId("llmd"), Probed(models=(ServedModel(id="base"), tuned)))
    assert save(clusters, kept) == 2
    before = clusters.entry("tuned")
    again = Clusters(clock)
    again.keep([place()])
    again.remember(kept.values())
    assert again.entry("tuned") == before
    assert names(again) == ["base", "tuned"]
    assert save(again, kept) == 0
    assert again.untold() == []
    assert again.unlisted() == ["llmd"], "what it serves now it has not said"


def test_a_restart_does_not_make_a_name_that_lists_lack_new(
    clusters: Clusters, clock: FakeClock
) -> None:
    kept: dict[str, KnownModel] = {}
    clusters.learn(EndpointId("llmd"), told("base", "old"))
    for _ in range(13):
        clock.now += 3600
        clusters.learn(EndpointId("llmd"), told("base"))
        save(clusters, kept)
    again = Clusters(clock)
    again.keep([place()])
    again.remember(kept.values())
    assert names(again) == ["base"]
    for _ in range(11):
        assert again.entry("old") is not None
        again.learn(EndpointId("llmd"), told("base"))
        clock.now += 3600
    again.learn(EndpointId("llmd"), told("base"))
    assert again.entry("old") is None
    assert save(again, kept) == 2, "the one is gone, the other is written anew after hours"
    assert list(kept) == ["base"]


def test_looks_that_find_the_same_are_not_written(clusters: Clusters, clock: FakeClock) -> None:
    kept: dict[str, KnownModel] = {}
    written = []
    for number in range(100):
        clock.now += 10
        # two pods: one has an adapter that the other has not
        clusters.learn(EndpointId("llmd"), told("base", *(["one"] if number % 2 else [])))
        written.append(save(clusters, kept))
    assert sum(written) == 2


def test_what_could_not_be_written_is_written_later(clusters: Clusters) -> None:
    clusters.learn(EndpointId("llmd"), told("m"))
    [change] = clusters.unsaved()
    assert clusters.unsaved() == []
    clusters.mark_saved(change, is_saved=False)
    assert clusters.unsaved() == [change]
    clusters.keep([])
    clusters.mark_saved(change, is_saved=True)
    assert clusters.unsaved() == []


# ── names that are let go ────────────────────────────────────────────────────────────────────


async def test_names_that_are_let_go_one_after_the_other_all_stay_away(
    start_router: StartRouter,
) -> None:
    """Whatever a router writes that has not heard of the last one yet."""
    llmd, quiet = EndpointId("llmd"), {"router_probe_s": 3600.0, "router_catalog_poll_s": 3600.0}
    async with cluster(start_router, "base", **quiet) as (router, _):
        router.router.fleet.learn(llmd, told("base", "one", "two"))
        await router.router.memory.flush()
        router.write(lambda c: forget_models(c, "llmd", ["one"]))
        await router.catch_up()
        router.write(lambda c: forget_models(c, "llmd", ["two"]))
        await router.router.memory.flush()
        await router.catch_up()
        await router.router.memory.flush()
        assert [each.model.id for each in router.write(list_known_models)] == ["base"]
        assert router.router.fleet.clusters.entry("two") is None
        router.router.fleet.learn(llmd, told("base", "two"))
        await router.router.memory.flush()
        assert [each.model.id for each in router.write(list_known_models)] == ["base", "two"]


async def test_a_name_that_is_let_go_falls_to_the_prefix_rules_and_stays_away(
    start_router: StartRouter,
) -> None:
    llmd, quiet = EndpointId("llmd"), {"router_probe_s": 3600.0, "router_catalog_poll_s": 3600.0}
    async with cluster(start_router, "gpt-base", **quiet) as (router, _):
        router.router.fleet.learn(llmd, told("gpt-base", "gpt-adapter"))
        await router.router.memory.flush()
        router.write(lambda c: forget_models(c, "llmd", ["gpt-adapter"]))
        await router.catch_up()
        await router.router.memory.flush()
        answer = await router.client.post(CHAT, json=chat("gpt-adapter"))
        assert "EXTERNAL_OPENAI_KEY" in error_of(answer)["message"], "its rule leads to OpenAI"
        assert [each.model.id for each in router.write(list_known_models)] == ["gpt-base"]
        url = router.settings.llmd_endpoint
    async with start_router(llmd_endpoint=url, **quiet) as router:
        assert router.router.fleet.clusters.entry("gpt-adapter") is None
        # what the cluster lists again is its own again, whatever is said anew of the rest
        router.router.fleet.learn(llmd, told("gpt-base", "gpt-adapter"))
        router.router.fleet.swap(router.router.fleet.catalog)
        assert router.router.fleet.clusters.entry("gpt-adapter") is not None
        await router.router.memory.flush()
        later = wall_time() + 60
        router.write(lambda c: forget_models(c, "llmd", ["gpt-adapter"], now=lambda: later))
        await router.catch_up()
        assert router.router.fleet.clusters.entry("gpt-adapter") is None, "and let go once more"
