"""The prober: whom it asks and how often, and what its answers mean for traffic."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import NoReturn

import pytest

from router.domain import (
    Call,
    Catalog,
    Deployment,
    Endpoint,
    EndpointId,
    Gateway,
    Probed,
    Provider,
    ServedModel,
    Zone,
)
from router.errors import PodUnreachable
from router.fleet.breaker import BreakerRule, Breakers
from router.fleet.clusters import ClusterState
from router.fleet.membership import Membership
from router.fleet.prober import Prober
from router.fleet.registry import Fleet
from router.ports import Backend
from shared.http.errors import ApiError, UpstreamFailed, UpstreamTimeout, UpstreamUnreachable
from shared.http.exchange import Reply

GONE = UpstreamUnreachable("gone")


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


class Asked(Backend):
    """Answers probes as told, and keeps whom it asked."""

    def __init__(self) -> None:
        self.answers: dict[str, ApiError | None] = {}
        self.asked: list[str] = []
        self.refused: set[str | None] = set()
        self.told: Probed | None = None

    def send(self, deployment: Deployment, call: Call) -> AbstractAsyncContextManager[Reply]:
        return self._refuse()

    def _refuse(self) -> NoReturn:
        raise AssertionError("a prober sends no requests")

    async def probe(self, endpoint: Endpoint) -> Probed:
        self.asked.append(endpoint.id)
        error = self.answers.get(endpoint.id)
        if error is not None:
            raise error
        return self.told or Probed(is_accepted=endpoint.credential not in self.refused)


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def backend() -> Asked:
    return Asked()


@pytest.fixture
def fleet(now: Now) -> Fleet:
    def endpoint_of(provider: Provider) -> Endpoint:
        return Endpoint(
            id=EndpointId(provider.name),
            base_url="http://x/v1",
            backend=provider.dialect,
            zone=provider.zone,
        )

    rule = BreakerRule(failures=2, first_s=2)
    fleet = Fleet(Membership(now, 30.0), endpoint_of, Breakers(now, rule))
    zones = {"lan": Zone.LOCAL, "k8s": Zone.CLUSTER, "vendor": Zone.CLOUD}
    providers = {
        name: Provider(name=name, dialect="fake", base_url="http://x", zone=zone)
        for name, zone in zones.items()
    }
    martian = Provider(name="odd", dialect="martian", base_url="http://x", zone=Zone.LOCAL)
    fleet.swap(Catalog(providers={**providers, "odd": martian}))
    return fleet


@pytest.fixture
def prober(fleet: Fleet, backend: Asked) -> Prober:
    return Prober(fleet, {"fake": backend})


async def test_who_is_asked(prober: Prober, backend: Asked, fleet: Fleet) -> None:
    await prober.look()
    assert sorted(backend.asked) == ["k8s", "lan"]  # a vendor counts requests
    backend.asked.clear()
    await prober.look_at_spared()
    assert backend.asked == []
    for _ in range(2):
        for name in ("lan", "vendor"):
            fleet.breakers.miss(name)
    await prober.look()
    assert sorted(backend.asked) == ["k8s", "lan", "vendor"]


async def test_the_spared_are_asked_more_often_but_for_those_in_a_cloud(
    prober: Prober, backend: Asked, fleet: Fleet
) -> None:
    for _ in range(2):
        for name in ("lan", "vendor", "odd"):
            fleet.breakers.miss(name)
    backend.answers["lan"] = GONE
    await prober.look_at_spared()
    assert backend.asked == ["lan"]
    assert fleet.breakers.wait_s("lan", "m") is not None
    backend.answers.clear()
    await prober.look_at_spared()
    assert fleet.breakers.wait_s("lan", "m") is None
    backend.asked.clear()
    await prober.look_at_spared()
    assert backend.asked == []


async def test_misses_open_the_breaker_and_one_answer_closes_it(
    prober: Prober, backend: Asked, fleet: Fleet
) -> None:
    backend.answers["lan"] = GONE
    await prober.look()
    assert fleet.breakers.wait_s("lan", "m") is None
    await prober.look()
    assert fleet.breakers.wait_s("lan", "m") == 2
    assert fleet.breakers.wait_s("k8s", "m") is None
    backend.answers.clear()
    await prober.look()
    assert fleet.breakers.wait_s("lan", "m") is None


@pytest.mark.parametrize("error", [GONE, UpstreamFailed("500")])
async def test_being_asked_often_spares_it_for_no_longer(
    prober: Prober, backend: Asked, fleet: Fleet, now: Now, error: ApiError
) -> None:
    backend.answers["lan"] = error
    for _ in range(20):
        await prober.look()
    assert fleet.breakers.wait_s("lan", "m") == 2
    now.s += 2
    for _ in range(20):
        await prober.look_at_spared()
    assert fleet.breakers.wait_s("lan", "m") == 4


async def test_a_busy_engine_that_answers_no_probe_is_no_lost_one(
    prober: Prober, backend: Asked, fleet: Fleet
) -> None:
    backend.answers["lan"] = UpstreamTimeout("late")
    endpoint = next(one for one in fleet.endpoints() if one.id == "lan")
    deployment = Deployment(endpoint=endpoint, upstream_name="m")
    fleet.enter(deployment)
    for _ in range(5):
        await prober.look()
    assert fleet.breakers.wait_s("lan", "m") is None
    fleet.leave(deployment)
    for _ in range(2):
        await prober.look()
    assert fleet.breakers.wait_s("lan", "m") is not None


def with_cluster(fleet: Fleet, zone: Zone = Zone.CLUSTER) -> None:
    """Put a cluster in the place of all other endpoints."""
    found = Endpoint(
        id=EndpointId("llmd"), base_url="http://x/v1", backend="fake", zone=zone, gateway=Gateway()
    )
    fleet._endpoint_of = lambda _provider: found
    provider = Provider(name="llmd", dialect="fake", base_url="http://x", zone=zone)
    fleet.swap(Catalog(providers={"llmd": provider}))


@pytest.mark.parametrize("zone", [Zone.CLUSTER, Zone.CLOUD])
async def test_a_new_cluster_is_asked_at_once_and_then_like_others(
    prober: Prober, backend: Asked, fleet: Fleet, zone: Zone
) -> None:
    with_cluster(fleet, zone)
    backend.told = Probed(models=(ServedModel(id="m"),))
    for _ in range(2):
        await prober.look_at_new()
        await prober.look_at_spared()
    assert backend.asked == ["llmd"]
    assert fleet.resolve("m").candidates[0].deployment.endpoint.id == "llmd"
    await prober.look()
    assert backend.asked == ["llmd"] * 2


async def test_a_busy_cluster_that_answers_no_probe_is_a_lost_one(
    prober: Prober, backend: Asked, fleet: Fleet
) -> None:
    with_cluster(fleet)
    backend.answers["llmd"] = UpstreamTimeout("its picker hangs")
    [endpoint] = fleet.endpoints()
    fleet.enter(Deployment(endpoint=endpoint, upstream_name="m"))
    for _ in range(2):
        await prober.look()
    assert fleet.breakers.wait_s("llmd", "m") is not None


async def test_a_look_that_a_busy_pod_has_no_time_for_is_none_against_a_cluster_that_answers(
    prober: Prober, backend: Asked, fleet: Fleet
) -> None:
    with_cluster(fleet)
    backend.answers["llmd"] = UpstreamTimeout("this pod is busy")
    [endpoint] = fleet.endpoints()
    deployment = Deployment(endpoint=endpoint, upstream_name="m")
    for _ in range(5):
        fleet.answered(deployment)  # by another one
        await prober.look()
    assert fleet.breakers.wait_s("llmd", "m") is None
    for _ in range(2):
        await prober.look()  # nobody was answered since
    assert fleet.breakers.wait_s("llmd", "m") is not None


async def test_a_new_cluster_is_asked_often_until_it_is_clear_that_no_pod_answers(
    prober: Prober, backend: Asked, fleet: Fleet
) -> None:
    with_cluster(fleet, Zone.CLOUD)
    backend.answers["llmd"] = PodUnreachable("no healthy upstream")
    for _ in range(30):
        await prober.look_at_spared()
    assert len(backend.asked) == 10
    assert dict(fleet.clusters) == {"llmd": ClusterState.DOUBTFUL}
    assert fleet.clusters.untold() == ["llmd"], "nobody knows what it serves"
    backend.answers.clear()
    backend.told = Probed(models=(ServedModel(id="m"),))
    await prober.look()
    assert dict(fleet.clusters) == {"llmd": ClusterState.READY}


async def test_answers_from_before_the_last_look_speak_for_nobody(
    prober: Prober, backend: Asked, fleet: Fleet
) -> None:
    with_cluster(fleet)
    [endpoint] = fleet.endpoints()
    fleet.answered(Deployment(endpoint=endpoint, upstream_name="m"))
    await prober.look()
    backend.answers["llmd"] = UpstreamTimeout("its picker hangs")
    for _ in range(2):
        await prober.look()
    assert fleet.breakers.wait_s("llmd", "m") is not None
