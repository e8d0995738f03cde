"""What came of a soak, in lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypeVar

from tests.soak.books import Metrics
from tests.soak.run import Found
from tests.soak.watch import growth, quantile

_SHOWN = 60
_T = TypeVar("_T")


def render(found: Found) -> str:
    """Return the whole report."""
    return "\n".join([*_figures(found), *_verdict(found)])


def _figures(found: Found) -> Iterator[str]:
    accounts = found.accounts.values()
    endings = Counter(each.ending.value for each in accounts)
    statuses = Counter(each.status for each in accounts if each.status)
    rows = [row for each in found.ledger.values() for row in each]
    rate = len(accounts) / max(found.seconds, 1)
    yield f"seed {found.seed}, {found.seconds:.0f} s, {len(accounts)} requests ({rate:.0f}/s)"
    yield f"endings: {_counts(endings)}"
    yield f"statuses: {_counts(statuses)}"
    yield f"refused as: {_counts(Counter(each.code for each in accounts if each.code))}"
    yield f"ledger: {len(rows)} rows; {_counts(Counter(row.error or 'ok' for row in rows))}"
    yield f"rows per request: {_counts(Counter(len(each) for each in found.ledger.values()))}"
    yield f"engines ended: {_counts(Counter(found.engine_ends))}"
    yield f"idle before: {found.before}"
    yield f"idle after: {found.after}; connections at engines: {found.connections}"
    values = found.metrics.values
    yield (
        f"waited in a queue: {values['iir_queue_seconds_count']:.0f} of those who were served; "
        f"the event loop was late by {_mean_ms(values):.1f} ms on average, "
        f"{_over(found.metrics):.2%} of the time by more than 20 ms"
    )
    watch = found.watch
    if watch is not None and watch.answer_s:
        ms = [1000 * quantile(watch.answer_s, share) for share in (0.5, 0.99, 1.0)]
        yield f"/readyz: p50 {ms[0]:.1f} ms, p99 {ms[1]:.1f} ms, longest {ms[2]:.1f} ms"
        yield (
            f"memory: {watch.rss_mb[0]:.1f} MiB at first, at most {max(watch.rss_mb):.1f}, "
            f"{growth(watch.rss_mb):+.1f} from a quarter of the time to the end; "
            f"files: at most {max(watch.files)}"
        )


def _mean_ms(values: Mapping[str, float]) -> float:
    count = values["iir_event_loop_delay_seconds_count"]
    return 1000 * values["iir_event_loop_delay_seconds_sum"] / max(count, 1)


def _over(metrics: Metrics) -> float:
    name = "iir_event_loop_delay_seconds"
    within = metrics.by_label[f"{name}_bucket", "0.02"]
    return 1 - within / max(metrics.values[f"{name}_count"], 1)


def _counts(counts: Counter[_T]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def _verdict(found: Found) -> Iterator[str]:
    if not found.complaints:
        yield "all is well"
        return
    yield f"{len(found.complaints)} things are wrong:"
    yield from (f"- {each}" for each in found.complaints[:_SHOWN])
    if len(found.complaints) > _SHOWN:
        yield f"- and {len(found.complaints) - _SHOWN} more"
