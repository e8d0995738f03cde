"""Sums of the usage ledger and `iir usage`, over rows written by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, update
from typer.testing import CliRunner

from router.cli import app
from router.cli.usage import parse_time
from router.domain import Scope
from router.settings import load_settings
from router.store import keys
from router.store.errors import InvalidValue
from router.store.reader import RegistryReader
from router.store.tables import api_keys
from router.store.tables import usage as usage_table
from router.store.usage import UsageBy, UsageReport, UsageSum, sum_usage
from router.store.writer import RegistryWriter
from shared.kit.clock import wall_time

DAY = 86_400
NOON = 20_000.5 * DAY  # 2024-10-04


def row(request_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "ts": NOON,
        "request_id": request_id,
        "model": "smol",
        "endpoint": "mac",
        "zone": "local",
        "key_id": None,
        "attempt": 1,
        "status": 200,
        "error": None,
        "input_tokens": 10,
        "output_tokens": 100,
        "ttft_s": 0.5,
        "total_s": 2.0,
        **changes,
    }


FAILED: dict[str, Any] = {
    "status": 502,
    "error": "upstream_unreachable",
    "input_tokens": None,
    "output_tokens": None,
    "ttft_s": None,
    "total_s": 1.0,
}
ROWS = [
    row("a"),
    # Failed at one endpoint, then served by another.
    row("b", ts=NOON + 1, **FAILED),
    row("b", ts=NOON + 2, attempt=2, endpoint="acme", zone="cloud", ttft_s=1.5, total_s=6.0),
    # The client left in the middle.
    row("c", key_id="key-1", error="abandoned", output_tokens=None),
    # Refused before any attempt, and gone while it waited.
    row("d", **{**FAILED, "endpoint": "", "zone": None, "attempt": 0, "error": "queue_full"}),
    row("e", **{**FAILED, "endpoint": "", "zone": None, "attempt": 0, "error": "abandoned"}),
    # An answer of the upstream's that is no success, on the next day.
    row("f", ts=NOON + DAY, model="big", key_id="key-2", status=404, output_tokens=0),
]


def fill(writer: RegistryWriter, rows: list[dict[str, Any]]) -> None:
    writer.run_sync(lambda c: c.execute(insert(usage_table), rows).close())


def report(
    writer: RegistryWriter, by: UsageBy, since: float = 0, until: float | None = None
) -> UsageReport:
    return writer.run_sync(lambda c: sum_usage(c, by, since=since, until=until))


def counts(found: UsageReport) -> dict[str | None, tuple[int, int, int, int]]:
    return {r.group: (r.requests, r.attempts, r.failed, r.abandoned) for r in found.rows}


def test_sums_by_model(writer: RegistryWriter) -> None:
    fill(writer, ROWS)
    found = report(writer, UsageBy.MODEL)
    smol = UsageSum(
        group="smol",
        requests=5,
        attempts=4,
        failed=1,
        abandoned=2,
        input_tokens=30,
        output_tokens=200,
        ttft_s=(0.5 + 1.5 + 0.5) / 3,
        duration_s=(2 + 1 + 6 + 2) / 4,
    )
    big = UsageSum(
        group="big",
        requests=1,
        attempts=1,
        failed=1,
        abandoned=0,
        input_tokens=10,
        output_tokens=0,
        ttft_s=0.5,
        duration_s=2.0,
    )
    assert found.rows == (smol, big)
    assert (found.total.requests, found.total.attempts) == (6, 5)
    assert (found.total.input_tokens, found.total.output_tokens) == (40, 200)
    assert found.total.ttft_s == pytest.approx((0.5 + 1.5 + 0.5 + 0.5) / 4)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        # The request that was tried at both is counted at both, and once in the total.
        (
            UsageBy.ENDPOINT,
            {"mac": (4, 4, 2, 1), "acme": (1, 1, 0, 0), None: (2, 0, 0, 1)},
        ),
        (UsageBy.ZONE, {"local": (4, 4, 2, 1), "cloud": (1, 1, 0, 0), None: (2, 0, 0, 1)}),
        (UsageBy.DAY, {"2024-10-04": (5, 4, 1, 2), "2024-10-05": (1, 1, 1, 0)}),
        (
            UsageBy.OUTCOME,
            {
                "ok": (2, 2, 0, 0),
                "abandoned": (2, 1, 0, 2),
                "http_404": (1, 1, 1, 0),
                "queue_full": (1, 0, 0, 0),
                "upstream_unreachable": (1, 1, 1, 0),
            },
        ),
        (UsageBy.KEY, {"open": (4, 3, 1, 1), "key-1": (1, 1, 0, 1), "key-2": (1, 1, 1, 0)}),
    ],
)
def test_counts_by(
    writer: RegistryWriter, by: UsageBy, expected: dict[str | None, tuple[int, int, int, int]]
) -> None:
    fill(writer, ROWS)
    found = report(writer, by)
    assert counts(found) == expected
    total = found.total
    assert (total.requests, total.attempts, total.failed, total.abandoned) == (6, 5, 2, 2)


def test_groups_come_in_order(writer: RegistryWriter) -> None:
    fill(writer, [row(str(n), ts=(9 - n % 3) * DAY, model=f"m{n % 3}") for n in range(8)])
    assert [r.group for r in report(writer, UsageBy.MODEL).rows] == ["m0", "m1", "m2"]
    days = [r.group for r in report(writer, UsageBy.DAY).rows]
    assert days == ["1970-01-08", "1970-01-09", "1970-01-10"]


def test_span_has_its_begin_and_not_its_end(writer: RegistryWriter) -> None:
    fill(writer, [row(str(n), ts=float(n)) for n in range(10)])
    assert report(writer, UsageBy.MODEL, 3.0, 7.0).total.requests == 4
    assert report(writer, UsageBy.MODEL, 3.0).total.requests == 7
    nothing = report(writer, UsageBy.MODEL, 11.0)
    assert nothing.rows == ()
    assert (nothing.total.requests, nothing.total.input_tokens) == (0, None)


def test_tokens_have_no_bound(writer: RegistryWriter) -> None:
    fill(writer, [row(str(n), input_tokens=2**53) for n in range(2048)])
    assert report(writer, UsageBy.MODEL).total.input_tokens == 2**64


def test_keys_have_their_names(writer: RegistryWriter) -> None:
    names = ("laptop", "ops", "ops", "open")
    prefixes = [
        keys.parse_prefix(writer.run_sync(lambda c, n=n: keys.create_key(c, n, [Scope.INFERENCE])))  # type: ignore[misc]  # bound now
        for n in names
    ]

    def revoke(connection: Connection) -> None:
        ended = api_keys.c.id.in_([1, 3])
        connection.execute(update(api_keys).where(ended).values(revoked_at=5))

    writer.run_sync(revoke)
    used = [None, "key-1", "key-2", "key-3", "key-4", "key-99", "agent-1"]
    fill(writer, [row(str(n), key_id=key) for n, key in enumerate(used)])
    assert set(counts(report(writer, UsageBy.KEY))) == {
        "open",
        "laptop (revoked)",
        f"ops ({prefixes[1]})",
        f"ops ({prefixes[2]}, revoked)",
        f"open ({prefixes[3]})",
        "key-99",
        "agent-1",
    }


def test_router_writes_on_while_sums_are_read(url: str, writer: RegistryWriter) -> None:
    fill(writer, ROWS)
    reader = RegistryReader(url)

    def read(connection: Connection) -> tuple[int, int]:
        before = sum_usage(connection, UsageBy.MODEL, since=0).total.requests
        fill(writer, [row("new")])
        return before, sum_usage(connection, UsageBy.MODEL, since=0).total.requests

    assert reader.run(read) == (6, 6), "one read is of one piece"
    assert report(writer, UsageBy.MODEL).total.requests == 7
    reader.close()


@pytest.mark.slow
def test_long_ledger_is_summed_in_time(writer: RegistryWriter) -> None:
    count = 200_000
    rows = [row(f"request-{n:020}", model=f"m{n % 7}", ts=float(n)) for n in range(count)]
    fill(writer, rows)
    started = time.process_time()
    found = report(writer, UsageBy.MODEL)
    # A fraction of a second where it was built; a plan that looks at each pair of rows takes an hour.
    assert time.process_time() - started < 10
    assert sum(r.requests for r in found.rows) == found.total.requests == count


# ── the command ──────────────────────────────────────────────────────────────────────────────


def iir(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["usage", *arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_table_has_a_total(writer: RegistryWriter) -> None:
    fill(writer, ROWS)
    span, head, *lines = iir("--since", "2024-10-04", "--until", "2024-10-06T00:00").splitlines()
    assert span == "2024-10-04 00:00 to 2024-10-06 00:00 (UTC)"
    assert head.split()[:5] == ["model", "requests", "attempts", "failed", "abandoned"]
    assert [line.split() for line in lines] == [
        ["smol", "5", "4", "1", "2", "30", "200", "0.833", "s", "2.750", "s"],
        ["big", "1", "1", "1", "0", "10", "0", "0.500", "s", "2.000", "s"],
        ["total", "6", "5", "2", "2", "40", "200", "0.750", "s", "2.600", "s"],
    ]


def test_json_has_numbers_and_a_total(writer: RegistryWriter) -> None:
    fill(writer, ROWS)
    found = json.loads(iir("--since", "2024-10-04", "--by", "endpoint", "--json"))
    assert (found["by"], found["since"]) == ("endpoint", 20_000 * DAY)
    assert found["until"] > 1_700_000_000
    by_endpoint = {r["endpoint"]: r for r in found["rows"]}
    assert set(by_endpoint) == {"mac", "acme", None}
    assert by_endpoint["acme"] == {
        "endpoint": "acme",
        "requests": 1,
        "attempts": 1,
        "failed": 0,
        "abandoned": 0,
        "input_tokens": 10,
        "output_tokens": 100,
        "ttft_s": 1.5,
        "duration_s": 6.0,
    }
    assert found["total"]["requests"] == 6
    assert "group" not in found["total"]


def test_last_day_by_default(writer: RegistryWriter) -> None:
    assert iir().startswith("no requests from ")
    now = wall_time()
    fill(writer, [row("old", ts=now - 25 * 3600), row("new", ts=now - 23 * 3600)])
    assert json.loads(iir("--json"))["total"]["requests"] == 1
    assert json.loads(iir("--since", "2d", "--json"))["total"]["requests"] == 2
    assert json.loads(iir("--since", "2d", "--until", "24h", "--json"))["total"]["requests"] == 1
    nothing = json.loads(iir("--since", "10m", "--json"))
    assert nothing["rows"] == []
    assert nothing["total"]["requests"] == 0
    assert nothing["total"]["ttft_s"] is None


def test_no_registry_is_made() -> None:
    error = iir(code=1)
    assert "iir migrate" in error
    path = Path(load_settings().store_url.removeprefix("sqlite:///"))
    assert not path.exists()
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", 1e9 - 5400),
        ("24h", 1e9 - DAY),
        ("7d", 1e9 - 7 * DAY),
        ("2w", 1e9 - 14 * DAY),
        ("1970-01-02", DAY),
        ("1970-01-02T01:00", DAY + 3600),
        ("1970-01-02T01:00+01:00", DAY),
    ],
)
def test_times(text: str, expected: float) -> None:
    assert parse_time(text, 1e9) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "24", "-1h", "1.5h", "2024-13-01", "9" * 9 + "d"]
)
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(InvalidValue, match="7d"):
        parse_time(text, 1e9)
    assert "a time is" in iir(f"--since={text}", code=2)


def test_span_that_ends_before_it_begins() -> None:
    assert "before it begins" in iir("--since", "1h", "--until", "2h", code=2)
    assert "before it begins" in iir("--since", "2999-01-01", code=2)
