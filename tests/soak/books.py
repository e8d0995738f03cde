"""The router's own books after the load: its ledger, its log and its metrics."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine, text

from tests.soak.accounts import Account, Ending, Row, differs

_QUIET_S = 20.0
_HEARD_MS = 20.0
_LABELS = {"outcome", "reason", "le"}
_QUIET = ("iir_in_flight", "iir_queued", "iir_places_taken", "iir_ledger_waiting")


def read_ledger(store_url: str) -> dict[str, list[Row]]:
    """Return the usage ledger's rows by request id, in the order in which they were written."""
    engine = create_engine(store_url)
    query = text("SELECT request_id, attempt, status, error, endpoint FROM usage ORDER BY id")
    found: dict[str, list[Row]] = defaultdict(list)
    with engine.connect() as connection:
        for row in connection.execute(query):
            found[row.request_id].append(Row(row.attempt, row.status, row.error, row.endpoint))
    engine.dispose()
    return dict(found)


def check_ledger(accounts: Mapping[str, Account], ledger: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return each request whose rows are not what its client saw."""
    found = [
        f"ledger: {each.request_id} ({each.api}, {each.manner}, {each.ending.value}): {text}"
        for each in accounts.values()
        if (text := differs(each, ledger.get(each.request_id, ()))) is not None
    ]
    return found + [f"ledger: nobody asked {name}" for name in ledger.keys() - accounts.keys()]


def check_seen(ledger: Mapping[str, Sequence[Row]], seen: Mapping[str, Counter[str]]) -> list[str]:
    """Return each request that an engine got more often than the ledger has attempts there."""
    found = []
    for endpoint, counts in seen.items():
        for request_id, count in counts.items():
            rows = [row for row in ledger.get(request_id, ()) if row.endpoint == endpoint]
            if count > len(rows):
                found.append(f"engine {endpoint}: got {request_id} {count} times, {rows}")
    return found


def check_log(path: Path, accounts: Mapping[str, Account]) -> list[str]:
    """Return errors in the log, lines that are none of it, and requests without just one line."""
    found = []
    lines: Counter[str] = Counter()
    with path.open(encoding="utf-8") as log:
        for line in log:
            try:
                entry = json.loads(line)
            except ValueError:
                found.append(f"log: {line.rstrip()[:300]}")
                continue
            if entry.get("level") in {"error", "critical"}:
                found.append(f"log: {line.rstrip()[:600]}")
            if entry.get("event") == "request":
                lines[entry["request_id"]] += 1
    for each in accounts.values():
        least = each.is_http and each.ending not in {Ending.LEFT, Ending.OPEN}
        if not least <= lines[each.request_id] <= 1:
            found.append(f"log: {lines[each.request_id]} lines of {each.request_id}")
    return found


def note_heard(path: Path, accounts: Mapping[str, Account]) -> None:
    """Note of requests whose client left which of them the router had begun with, by its log.

    It takes a whole request as soon as it comes; what it had for longer was on its way.
    """
    with path.open(encoding="utf-8") as log:
        for line in log:
            if '"abandoned"' not in line or not line.startswith("{"):
                continue
            entry = json.loads(line)
            account = accounts.get(entry.get("request_id", ""))
            if account is not None and account.is_http and entry["duration_ms"] > _HEARD_MS:
                account.was_heard = True


@dataclass(slots=True)
class Metrics:
    """What `/metrics` says: by name, and by name and one label."""

    values: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_label: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))


async def read_metrics(client: httpx.AsyncClient) -> Metrics:
    """Ask the router."""
    answer = await client.get("/metrics")
    answer.raise_for_status()
    return parse_metrics(answer.text)


def parse_metrics(text: str) -> Metrics:
    """Return what Prometheus' text says."""
    found = Metrics()
    families = text_string_to_metric_families(text)
    for sample in (sample for family in families for sample in family.samples):
        found.values[sample.name] += sample.value
        for label in _LABELS & sample.labels.keys():
            found.by_label[sample.name, sample.labels[label]] += sample.value
    return found


async def quiet_metrics(client: httpx.AsyncClient) -> tuple[Metrics, list[str]]:
    """Wait until nothing is under way, and return the metrics then, and what never ended."""
    deadline = asyncio.get_running_loop().time() + _QUIET_S
    while True:
        metrics = await read_metrics(client)
        busy = [name for name in _QUIET if metrics.values.get(name, -1)]
        if not busy:
            return metrics, []
        if asyncio.get_running_loop().time() > deadline:
            return metrics, [f"metrics: {name} stays at {metrics.values[name]}" for name in busy]
        await asyncio.sleep(0.2)


def check_metrics(metrics: Metrics, ledger: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return each counter that differs from what the ledger adds up to."""
    rows = [row for each in ledger.values() for row in each]
    attempts = [row for row in rows if row.attempt]
    is_ok = [row for row in attempts if row.error is None and row.status < 400]
    abandoned = [row for row in attempts if row.error == "abandoned"]
    expected = {
        "iir_attempts_total": len(attempts),
        "iir_refused_total": len(rows) - len(attempts),
        "iir_failovers_total": sum(row.attempt > 1 for row in attempts),
        "iir_ledger_dropped_total": 0,
        "iir_registry_errors_total": 0,
    }
    found = [
        f"metrics: {name} is {metrics.values[name]:.0f}, {count} by the ledger"
        for name, count in expected.items()
        if metrics.values[name] != count
    ]
    for outcome, counted in (("ok", is_ok), ("abandoned", abandoned)):
        value = metrics.by_label["iir_attempts_total", outcome]
        if value != len(counted):
            found.append(f"metrics: {value:.0f} attempts {outcome}, {len(counted)} by the ledger")
    return found
