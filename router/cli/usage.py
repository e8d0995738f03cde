"""`iir usage`: what the ledger adds up to."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Annotated, Final

import typer

from router.cli.output import AsJson, date, write_json, write_table
from router.cli.session import read
from router.store.errors import InvalidValue
from router.store.usage import UsageBy, UsageSum, sum_usage
from shared.kit.clock import wall_time

_SPAN: Final = re.compile(r"([0-9]{1,6})([mhdw])")
_SECONDS: Final = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def usage(
    since: Annotated[
        str, typer.Option(help="How far back (90m, 24h, 7d, 4w), or a date in UTC.")
    ] = "24h",
    until: Annotated[str | None, typer.Option(help="Where it ends; by default now.")] = None,
    by: Annotated[UsageBy, typer.Option(help="What the sums are made by.")] = UsageBy.MODEL,
    as_json: AsJson = False,
) -> None:
    """Sum up requests, attempts and tokens."""
    now = wall_time()
    start = parse_time(since, now)
    end = None if until is None else parse_time(until, now)
    if start >= (now if end is None else end):
        raise InvalidValue("the span ends before it begins; see --since and --until")
    report = read(lambda connection: sum_usage(connection, by, since=start, until=end))
    if as_json:
        rows = [_as_json(row, by) for row in report.rows]
        total = {key: value for key, value in asdict(report.total).items() if key != "group"}
        span = {"since": start, "until": now if end is None else end}
        write_json({**span, "by": by.value, "rows": rows, "total": total})
        return
    span_text = f"{date(int(start))} to {'now' if end is None else date(int(end))} (UTC)"
    lines = [_line(row.group, row) for row in report.rows]
    if lines:
        typer.echo(span_text)
        lines.append(_line("total", report.total))
    write_table(
        (
            by.value,
            "requests",
            "attempts",
            "failed",
            "abandoned",
            "input tokens",
            "output tokens",
            "mean TTFT",
            "mean duration",
        ),
        lines,
        empty=f"no requests from {span_text}; --since says how far to look back",
    )


def parse_time(text: str, now: float) -> float:
    """Return a time in seconds since 1970: a span before `now`, or a date in UTC unless it says so.

    Raises:
        InvalidValue: it is neither.
    """
    span = _SPAN.fullmatch(text)
    if span is not None:
        return now - int(span[1]) * _SECONDS[span[2]]
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            found = found.replace(tzinfo=timezone.utc)
        return found.timestamp()
    except (ValueError, OverflowError):
        raise InvalidValue(
            "a time is a span back from now (90m, 24h, 7d, 4w) or a date (2026-11-01, "
            "2026-11-01T18:30)"
        ) from None


def _line(name: str | None, row: UsageSum) -> tuple[object, ...]:
    return (
        name,
        row.requests,
        row.attempts,
        row.failed,
        row.abandoned,
        row.input_tokens,
        row.output_tokens,
        _seconds(row.ttft_s),
        _seconds(row.duration_s),
    )


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f} s"


def _as_json(row: UsageSum, by: UsageBy) -> dict[str, object]:
    fields = asdict(row)
    return {by.value: fields.pop("group"), **fields}
