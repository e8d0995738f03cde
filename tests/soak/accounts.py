"""What a client knows of its request, and whether the usage ledger tells the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Ending(str, Enum):
    """How a request ended for its client."""

    OPEN = "open"
    WHOLE = "whole"
    ERROR = "error"
    BROKEN_OFF = "broken off"
    LEFT = "left"


@dataclass(slots=True, kw_only=True)
class Account:
    """One request.

    `is_http`: the router can read its id. `was_heard`: it came whole, and its client saw or waited
    long enough that the router must have begun with it. `attempts` and `code` are what the answer
    says; `has_own_end`: the upstream itself told that it failed, in its API's own words.
    """

    request_id: str
    api: str
    manner: str
    is_http: bool = True
    was_heard: bool = False
    ending: Ending = Ending.OPEN
    status: int = 0
    attempts: int | None = None
    code: str | None = None
    has_own_end: bool = False


class Row(NamedTuple):
    """A row of the usage ledger, as far as clients can know it."""

    attempt: int
    status: int
    error: str | None
    endpoint: str


UNCOUNTED = frozenset(
    {
        "invalid_json",
        "invalid_request",
        "request_too_large",
        "request_timeout",
        "unsupported_media_type",
        "method_not_allowed",
        "invalid_api_key",
        "model_not_found",
        "unsupported_api",
    }
)
"""What ends before anybody is chosen to serve it; by design that leaves no row."""


def differs(account: Account, rows: Sequence[Row]) -> str | None:
    """Return how the ledger's rows contradict what the client saw; None if they agree.

    There is one per attempt, and one with attempt 0 behind them if it ended outside of any.
    """
    numbers = [row.attempt for row in rows]
    made = sum(number > 0 for number in numbers)
    if numbers[:made] != [*range(1, made + 1)] or numbers[made:] not in ([], [0]):
        return f"the rows' attempts are {numbers}"
    if any(row.error is None for row in rows[:-1]):
        return "an attempt was followed by another though it went well"
    if rows and not account.is_http:
        return f"no whole request came, and there are rows: {rows}"
    if account.attempts and made != account.attempts:
        return f"{account.attempts} attempts according to the answer, {made} rows of attempts"
    return _END[account.ending](account, rows)


def _open(account: Account, rows: Sequence[Row]) -> str | None:
    return "the client never came to an end"


def _whole(account: Account, rows: Sequence[Row]) -> str | None:
    if not rows or rows[-1].error is not None or rows[-1].status != 200:
        return f"the client got it whole, the last row says {rows[-1:]}"
    return None


def _error(account: Account, rows: Sequence[Row]) -> str | None:
    if not account.attempts and account.code in UNCOUNTED:
        return f"it was refused as {account.code}, and has rows: {rows}" if rows else None
    if not rows or rows[-1].error is None:
        return f"the client got the error {account.code}, the last row says {rows[-1:]}"
    if rows[-1].attempt == 0 and rows[-1].error != account.code:
        return f"the client was refused with {account.code}, the last row says {rows[-1]}"
    if rows[-1].attempt and not account.attempts:
        return f"no attempt according to the answer, the last row says {rows[-1]}"
    return None


def _broken_off(account: Account, rows: Sequence[Row]) -> str | None:
    if not rows or (rows[-1].error is None and not account.has_own_end):
        return f"the client's stream broke off, the last row says {rows[-1:]}"
    return None


def _left(account: Account, rows: Sequence[Row]) -> str | None:
    if account.was_heard and not rows:
        return "the client left after the router had begun, and there is no row"
    return None


_END = {
    Ending.OPEN: _open,
    Ending.WHOLE: _whole,
    Ending.ERROR: _error,
    Ending.BROKEN_OFF: _broken_off,
    Ending.LEFT: _left,
}
