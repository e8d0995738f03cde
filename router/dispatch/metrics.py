"""The router's Prometheus metrics: OpenTelemetry's GenAI names where one exists, `iir_*` for ours.

Labels are bounded: endpoint and zone come from the registry, the path from our own routes; a model
name that nobody registered never becomes a label.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router.domain import EndpointId, Outcome, RequestFacts
from router.fleet.registry import Fleet

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


class RouterMetrics:
    """Takes outcomes; `registry` is what `/metrics` renders."""

    def __init__(self, fleet: Fleet) -> None:
        self.registry = CollectorRegistry()
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From sending a request upstream to its last byte",
            ("endpoint", "operation"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._ttft = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From sending a request upstream to its first byte",
            ("endpoint", "operation"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "gen_ai_client_token_usage",
            "Tokens, as upstreams report them",
            ("endpoint", "type"),
            registry=self.registry,
        )
        self._found: dict[tuple[EndpointId, str], tuple[Histogram, Histogram]] = {}
        self._attempts = Counter(
            "iir_attempts",
            "Attempts by outcome: ok, an error code, or abandoned",
            ("endpoint", "outcome"),
            registry=self.registry,
        )
        in_flight = Gauge("iir_in_flight", "Attempts under way", registry=self.registry)
        in_flight.set_function(fleet.in_flight)
        version = Gauge("iir_snapshot_version", "Version of the registry", registry=self.registry)
        version.set_function(lambda: fleet.catalog.version)
        self.registry_errors = Counter(
            "iir_registry_errors", "Failed looks at the registry", registry=self.registry
        )

    def record(self, facts: RequestFacts, outcome: Outcome) -> None:
        """See `OutcomeSink.record`."""
        endpoint = outcome.endpoint
        duration, ttft = self._timers(endpoint, facts.path)
        self._attempts.labels(endpoint, _bounded(outcome)).inc()
        duration.observe(outcome.total_s)
        if outcome.ttft_s is not None:
            ttft.observe(outcome.ttft_s)
        if outcome.input_tokens:
            self._tokens.labels(endpoint, "input").inc(outcome.input_tokens)
        if outcome.output_tokens:
            self._tokens.labels(endpoint, "output").inc(outcome.output_tokens)

    def _timers(self, endpoint: EndpointId, path: str) -> tuple[Histogram, Histogram]:
        """Return the two histograms of an endpoint and route; looking labels up is slow."""
        found = self._found.get((endpoint, path))
        if found is None:
            labels = (endpoint, path.removeprefix("/"))
            found = self._duration.labels(*labels), self._ttft.labels(*labels)
            self._found[endpoint, path] = found
        return found


def _bounded(outcome: Outcome) -> str:
    """Return an outcome as a label: an upstream's own error codes are not ours to bound."""
    if 400 <= outcome.status < 500:
        return "http_4xx"
    if outcome.error is None:
        return "ok" if outcome.status < 400 else "http_5xx"
    if outcome.error == "abandoned" or outcome.error.startswith("upstream_"):
        return outcome.error
    return "upstream_error"
