"""The agent's Prometheus metrics. Labels are bounded: models come from the configuration."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from local_agent.lifecycle import SERVING
from local_agent.supervisor import Supervisor


class _Workers(Collector):
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def collect(self) -> Iterable[Metric]:
        in_flight = GaugeMetricFamily(
            "iir_agent_in_flight", "Requests in flight per model", labels=["model"]
        )
        ready = GaugeMetricFamily(
            "iir_agent_worker_ready", "Whether a model's worker is ready", labels=["model"]
        )
        running = GaugeMetricFamily(
            "iir_agent_running", "Requests that a model's engine works on", labels=["model"]
        )
        waiting = GaugeMetricFamily(
            "iir_agent_waiting",
            "Requests that wait for a model, in the agent or in its engine",
            labels=["model"],
        )
        for view in self._supervisor.workers():
            in_flight.add_metric([view.model], view.in_flight)
            running.add_metric([view.model], view.running)
            waiting.add_metric([view.model], view.waiting)
            ready.add_metric([view.model], float(view.state in SERVING))
        yield in_flight
        yield running
        yield waiting
        yield ready


def agent_metrics(supervisor: Supervisor) -> CollectorRegistry:
    """Return the registry that `/metrics` renders."""
    registry = CollectorRegistry()
    registry.register(_Workers(supervisor))
    return registry
