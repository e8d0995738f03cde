"""Reading the usage ledger: sums over a span of time, by one property of its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Float,
    Row,
    String,
    case,
    cast,
    func,
    literal,
    null,
    select,
)

from router.store.tables import api_keys, usage

ABANDONED: Final = "abandoned"
OPEN: Final = "open"
"""Stands for requests without a key."""

_DAY_S: Final = 86_400


class UsageBy(str, Enum):
    """What sums are made by."""

    MODEL = "model"
    ENDPOINT = "endpoint"
    KEY = "key"
    ZONE = "zone"
    DAY = "day"
    OUTCOME = "outcome"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSum:
    """The sum over some rows of the ledger.

    `group` is None where the rows have no such property: what was refused before its first
    attempt has no endpoint and no zone. Tokens are None if no upstream reported any. `ttft_s`
    is the mean of the attempts that gave a first byte, `duration_s` that of all attempts.
    """

    group: str | None
    requests: int
    attempts: int
    failed: int
    abandoned: int
    input_tokens: int | None
    output_tokens: int | None
    ttft_s: float | None
    duration_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """Sums by group, and over all. A request tried at two endpoints is one in the total."""

    rows: tuple[UsageSum, ...]
    total: UsageSum


def sum_usage(
    connection: Connection, by: UsageBy, *, since: float, until: float | None = None
) -> UsageReport:
    """Return the sums over what ended from `since` on and before `until`.

    Groups come with the most requests first, days in their order.

    Args:
        connection: inside a transaction, so that the total fits the groups.
        by: what the groups are.
        since: seconds since 1970.
        until: seconds since 1970; None for no end.
    """
    name = _namer(connection, by)
    found = connection.execute(_query(_GROUPS[by], since, until))
    rows = [_sum(row, name(row.group)) for row in found]
    if by is UsageBy.DAY:
        rows.sort(key=lambda row: str(row.group))
    else:
        rows.sort(key=lambda row: (-row.requests, str(row.group)))
    total = connection.execute(_query(null(), since, until)).one_or_none()
    return UsageReport(rows=tuple(rows), total=_NOTHING if total is None else _sum(total, None))


_OUTCOME: Final = case(
    (usage.c.error.is_not(None), usage.c.error),
    (usage.c.status < 400, literal("ok")),
    else_=literal("http_").concat(cast(usage.c.status, String(16))),
)

_GROUPS: Final[dict[UsageBy, ColumnElement[Any]]] = {
    UsageBy.MODEL: usage.c.model,
    UsageBy.ENDPOINT: usage.c.endpoint,
    UsageBy.KEY: usage.c.key_id,
    UsageBy.ZONE: usage.c.zone,
    # SQLite cuts the fraction off, PostgreSQL rounds it: half a second, once a day.
    UsageBy.DAY: cast(usage.c.ts, BigInteger) // _DAY_S,
    UsageBy.OUTCOME: _OUTCOME,
}

_NOTHING: Final = UsageSum(
    group=None,
    requests=0,
    attempts=0,
    failed=0,
    abandoned=0,
    input_tokens=None,
    output_tokens=None,
    ttft_s=None,
    duration_s=None,
)


def _query(group: ColumnElement[Any], since: float, until: float | None) -> Any:
    is_attempt = usage.c.attempt > 0
    is_abandoned = func.coalesce(usage.c.error, "") == ABANDONED
    is_failed = is_attempt & ~is_abandoned & (_OUTCOME != "ok")
    grouped = group.label("group")
    query = select(
        grouped,
        func.count(usage.c.request_id.distinct()).label("requests"),
        func.sum(case((is_attempt, 1), else_=0)).label("attempts"),
        func.sum(case((is_failed, 1), else_=0)).label("failed"),
        func.sum(case((is_abandoned, 1), else_=0)).label("abandoned"),
        # As floats: an upstream may report what no integer of the database can add up.
        func.sum(cast(usage.c.input_tokens, Float(53))).label("input_tokens"),
        func.sum(cast(usage.c.output_tokens, Float(53))).label("output_tokens"),
        func.avg(usage.c.ttft_s).label("ttft_s"),
        func.avg(case((is_attempt, usage.c.total_s))).label("duration_s"),
    ).where(usage.c.ts >= since)
    if until is not None:
        query = query.where(usage.c.ts < until)
    return query.group_by(grouped)


def _sum(row: Row[Any], group: str | None) -> UsageSum:
    return UsageSum(
        group=group,
        requests=row.requests,
        attempts=row.attempts,
        failed=row.failed,
        abandoned=row.abandoned,
        input_tokens=None if row.input_tokens is None else int(row.input_tokens),
        output_tokens=None if row.output_tokens is None else int(row.output_tokens),
        ttft_s=row.ttft_s,
        duration_s=row.duration_s,
    )


def _namer(connection: Connection, by: UsageBy) -> Callable[[Any], str | None]:
    if by is UsageBy.KEY:
        names = _key_names(connection)
        return lambda key_id: OPEN if key_id is None else names.get(key_id, key_id)
    return _day if by is UsageBy.DAY else lambda group: group or None


def _day(day: int) -> str:
    return datetime.fromtimestamp(day * _DAY_S, timezone.utc).strftime("%Y-%m-%d")


def _key_names(connection: Connection) -> dict[str, str]:
    """Return keys' names by their ids in the ledger; with the prefix where a name is not enough."""
    keys = connection.execute(select(api_keys)).all()
    known_as = Counter([OPEN, *(key.name for key in keys)])
    found = {}
    for key in keys:
        more = [key.prefix] if known_as[key.name] > 1 else []
        if key.revoked_at is not None:
            more.append("revoked")
        found[f"key-{key.id}"] = f"{key.name} ({', '.join(more)})" if more else key.name
    return found
