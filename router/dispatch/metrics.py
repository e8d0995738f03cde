"""The router's Prometheus metrics: OpenTelemetry's GenAI names where one exists, `iir_*` for ours.

Labels are bounded: endpoint and zone come from the registry, the path from our own routes; a model
name that nobody registered never becomes a label.

Requests only add to plain numbers; what Prometheus reads is made of them when it asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from router.domain import EndpointId, Outcome, RequestFacts
from router.errors import ClusterCold, ClusterError
from router.fleet.registry import Fleet
from shared.http.errors import (
    UpstreamCredentialRefused,
    UpstreamFailed,
    UpstreamInterrupted,
    UpstreamTimeout,
    UpstreamUnpaid,
    UpstreamUnreachable,
)

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_QUICK = (0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.01, 0.1, 1.0)

Read = Callable[[], float]


class _Histogram:
    """Counts per bucket, and the sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = _SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        found, running = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            running += count
            found.append((bound, float(running)))
        return found


class _Series:
    """What is counted of an endpoint's answers on one route."""

    __slots__ = ("cached_tokens", "duration", "input_tokens", "output_tokens", "ttft")

    def __init__(self) -> None:
        self.duration = _Histogram()
        self.ttft = _Histogram()
        self.input_tokens = 0
        self.output_tokens = 0
        self.cached_tokens: int | None = None


class RouterMetrics:
    """Takes outcomes; `registry` is what `/metrics` renders."""

    def __init__(self, fleet: Fleet) -> None:
        self.registry = CollectorRegistry()
        self.registry_errors = 0
        self._series: dict[tuple[EndpointId, str], _Series] = {}
        self._attempts: dict[tuple[EndpointId, str], int] = {}
        self._refused: dict[str, int] = {}
        self._failovers = 0
        self._overhead = _Histogram(_QUICK)
        self._queued = _Histogram()
        self._late = _Histogram()
        self._gauges: dict[str, tuple[str, Read]] = {}
        self._counters: dict[str, tuple[str, Read]] = {}
        self.gauge("iir_in_flight", "Attempts under way", fleet.in_flight)
        self.gauge("iir_snapshot_version", "Version of the registry", lambda: fleet.catalog.version)
        self.gauge(
            "iir_breakers_not_closed",
            "Breakers of endpoints and models that have failed lately",
            lambda: len(fleet.breakers),
        )
        self.counter(
            "iir_registry_errors", "Failed looks at the registry", lambda: self.registry_errors
        )
        self.registry.register(self)

    def gauge(self, name: str, text: str, read: Read) -> None:
        """Show what `read` returns at the time, under `name`."""
        self._gauges[name] = text, read

    def counter(self, name: str, text: str, read: Read) -> None:
        """Show what `read` returns, which never goes down, under `name`."""
        self._counters[name] = text, read

    def record(self, facts: RequestFacts, outcome: Outcome) -> None:
        """See `OutcomeSink.record`."""
        if not outcome.attempt:
            reason = outcome.error or ""
            self._refused[reason] = self._refused.get(reason, 0) + 1
            return
        endpoint = outcome.endpoint
        key = (endpoint, _bounded(outcome))
        self._attempts[key] = self._attempts.get(key, 0) + 1
        self._failovers += outcome.attempt > 1
        series = self._series.get((endpoint, facts.path))
        if series is None:
            series = self._series[endpoint, facts.path] = _Series()
        series.duration.observe(outcome.total_s)
        if outcome.ttft_s is not None:
            series.ttft.observe(outcome.ttft_s)
        series.input_tokens += outcome.input_tokens or 0
        series.output_tokens += outcome.output_tokens or 0
        if outcome.cached_tokens is not None:
            series.cached_tokens = (series.cached_tokens or 0) + outcome.cached_tokens

    def served(self, overhead_s: float, queued_s: float) -> None:
        """Take the time that a request spent here before it was sent, without its wait in a queue."""
        self._overhead.observe(overhead_s)
        if queued_s:
            self._queued.observe(queued_s)

    def loop_was_late(self, late_s: float) -> None:
        """Take how late the event loop did what was due: each request waits that long on top."""
        self._late.observe(late_s)

    def _tokens(self) -> dict[tuple[EndpointId, str], int]:
        """Return the tokens by endpoint and kind."""
        found: Counter[tuple[EndpointId, str]] = Counter()
        for (endpoint, _), series in self._series.items():
            found[endpoint, "input"] += series.input_tokens
            found[endpoint, "output"] += series.output_tokens
        return {key: count for key, count in found.items() if count}

    def _cached(self) -> Metric:
        """Return how much of their input endpoints had in a cache, of those that say; none of it is 0."""
        family = CounterMetricFamily(
            "iir_cached_input_tokens",
            "Input tokens that upstreams had in their caches of prefixes, as they report them",
            labels=("endpoint", "operation"),
        )
        for (endpoint, path), series in self._series.items():
            if series.cached_tokens is not None:
                family.add_metric((endpoint, path.removeprefix("/")), series.cached_tokens)
        return family

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they stand; called by `/metrics`."""
        yield from _histograms(
            "gen_ai_server_request_duration_seconds",
            "From sending a request upstream to its last byte",
            {key: series.duration for key, series in self._series.items()},
        )
        yield from _histograms(
            "gen_ai_server_time_to_first_token_seconds",
            "From sending a request upstream to its first byte",
            {key: series.ttft for key, series in self._series.items() if any(series.ttft.counts)},
        )
        yield _counts(
            "gen_ai_client_token_usage", "Tokens, as upstreams report them", "type", self._tokens()
        )
        yield self._cached()
        yield _counts(
            "iir_attempts",
            "Attempts by outcome: ok, an error code, or abandoned",
            "outcome",
            self._attempts,
        )
        refused = CounterMetricFamily(
            "iir_refused", "Requests that ended outside of any attempt", labels=("reason",)
        )
        for reason, count in self._refused.items():
            refused.add_metric((reason,), count)
        yield refused
        yield CounterMetricFamily(
            "iir_failovers", "Attempts after a failed one", value=self._failovers
        )
        for name, text, histogram in (
            ("iir_overhead_seconds", "The router's own time before sending", self._overhead),
            ("iir_queue_seconds", "Waiting for a place on an endpoint", self._queued),
            ("iir_event_loop_delay_seconds", "How late the event loop is", self._late),
        ):
            family = HistogramMetricFamily(name, text)
            family.add_metric((), histogram.buckets(), histogram.total)
            yield family
        for name, (text, read) in self._gauges.items():
            yield GaugeMetricFamily(name, text, value=read())
        for name, (text, read) in self._counters.items():
            yield CounterMetricFamily(name, text, value=read())


def _histograms(
    name: str, text: str, found: dict[tuple[EndpointId, str], _Histogram]
) -> Iterator[Metric]:
    family = HistogramMetricFamily(name, text, labels=("endpoint", "operation"))
    for (endpoint, path), histogram in found.items():
        labels = (endpoint, path.removeprefix("/"))
        family.add_metric(labels, histogram.buckets(), histogram.total)
    yield family


def _counts(name: str, text: str, label: str, found: dict[tuple[EndpointId, str], int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=("endpoint", label))
    for labels, count in found.items():
        family.add_metric(labels, count)
    return family


def _bounded(outcome: Outcome) -> str:
    """Return an outcome as a label: an upstream's own error codes are not ours to bound."""
    if 400 <= outcome.status < 500:
        return "http_4xx"
    if outcome.error is None:
        return "ok" if outcome.status < 400 else "http_5xx"
    return outcome.error if outcome.error in _OWN else "upstream_error"


# Upstreams may name their errors as they like; these are what the router itself says of an attempt.
_OWN = frozenset(
    {
        "abandoned",
        "agent_unavailable",
        "deadline_exceeded",
        "internal_error",
        "no_endpoint",
        *(
            error.code
            for error in (
                ClusterCold,
                ClusterError,
                UpstreamCredentialRefused,
                UpstreamFailed,
                UpstreamInterrupted,
                UpstreamTimeout,
                UpstreamUnpaid,
                UpstreamUnreachable,
            )
        ),
    }
)
