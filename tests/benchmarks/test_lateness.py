"""How late the event loop was: read from the router's own metrics, as it really renders them."""

from __future__ import annotations

from prometheus_client import generate_latest

from benchmarks.lateness import Looks, looks, read_looks
from router.dispatch.metrics import RouterMetrics
from router.fleet.endpoints import ProviderEndpoints
from router.fleet.membership import Membership
from router.fleet.registry import Fleet
from router.settings import Settings
from shared.kit.clock import monotonic


def rendered(*late_s: float) -> str:
    """Return the router's metrics after its loop was late by so much."""
    settings = Settings()
    fleet = Fleet(Membership(monotonic, 10.0), ProviderEndpoints(settings))
    metrics = RouterMetrics(fleet)
    for seconds in late_s:
        metrics.loop_was_late(seconds)
    return generate_latest(metrics.registry).decode()


def test_looks_within_ten_milliseconds_are_in_time() -> None:
    assert read_looks(rendered(0.0, 0.0099, 0.0101, 3.0)) == Looks(all=4, in_time=2)


def test_only_what_came_since_then_counts() -> None:
    before = read_looks(rendered(0.5, 0.5))
    after = read_looks(rendered(0.5, 0.5, 0.001, 0.02, 0.001, 0.001))
    assert after.late_since(before) == 0.25
    assert before.late_since(before) is None


def test_a_program_without_metrics_has_no_looks() -> None:
    assert looks(1, "") == Looks()
