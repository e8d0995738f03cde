"""The soak's checks: each finds what it is there for, and lets pass what is right."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shared.testing.distortions import STREAM_ONLY, check_kinds
from shared.testing.faults import parse_faults
from tests.soak.accounts import Account, Ending, Row, differs
from tests.soak.asks import make_ask
from tests.soak.books import (
    check_ledger,
    check_log,
    check_metrics,
    check_seen,
    note_heard,
    parse_metrics,
)
from tests.soak.faults import EVERYWHERE, IN_STREAMS, choose_fault
from tests.soak.judge import Wrong, judge
from tests.soak.plan import AGENT_MODEL
from tests.soak.watch import growth, quantile
from tests.soak.wire import Head

OK = Row(1, 200, None, "steady")
FAILED = Row(1, 502, "upstream_failed", "moody")
SECOND = Row(2, 200, None, "steady")
CUT = Row(1, 200, "upstream_interrupted", "moody")
LEFT = Row(1, 0, "abandoned", "steady")
FULL = Row(0, 429, "queue_full", "")


def account(ending: Ending = Ending.WHOLE, *, api: str = "chat", **fields: object) -> Account:
    made = Account(request_id="soak-1", api=api, manner="patient", ending=ending)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("seen", "rows"),
    [
        (account(attempts=1), [OK]),
        (account(attempts=2), [FAILED, SECOND]),
        (account(attempts=None), [FAILED, SECOND]),
        (account(Ending.ERROR, code="queue_full"), [FULL]),
        (account(Ending.ERROR, code="queue_full", attempts=1), [FAILED, FULL]),
        (account(Ending.ERROR, code="upstream_failed", attempts=1), [FAILED]),
        (account(Ending.LEFT, was_heard=True), [FAILED, FULL._replace(error="abandoned")]),
        (account(Ending.ERROR, code="invalid_json"), []),
        (account(Ending.BROKEN_OFF), [CUT]),
        (account(Ending.BROKEN_OFF, has_own_end=True), [OK]),
        (account(Ending.LEFT), []),
        (account(Ending.LEFT, was_heard=True), [LEFT]),
        (account(Ending.LEFT, was_heard=True), [OK]),
        (account(Ending.LEFT, is_http=False), []),
    ],
)
def test_rows_that_tell_what_the_client_saw_agree(seen: Account, rows: list[Row]) -> None:
    assert differs(seen, rows) is None
    assert check_ledger({"soak-1": seen}, {"soak-1": rows}) == []


@pytest.mark.parametrize(
    ("seen", "rows"),
    [
        (account(), []),
        (account(), [LEFT]),
        (account(), [OK, OK]),
        (account(), [FULL]),
        (account(), [OK, SECOND]),
        (account(), [SECOND]),
        (account(attempts=1), [FAILED, SECOND]),
        (account(attempts=2), [OK]),
        (account(Ending.ERROR, code="queue_full"), []),
        (account(Ending.ERROR, code="queue_full"), [LEFT]),
        (account(Ending.ERROR, code="queue_full"), [FULL._replace(error="abandoned")]),
        (account(Ending.ERROR, code="queue_full"), [FULL, FULL]),
        (account(Ending.ERROR, code="queue_full"), [FULL, OK]),
        (account(Ending.ERROR, code="queue_full"), [FAILED]),
        (account(Ending.ERROR, code="queue_full", attempts=2), [FAILED, FULL]),
        (account(Ending.ERROR, code="upstream_failed", attempts=1), [OK]),
        (account(Ending.ERROR, code="invalid_json"), [OK]),
        (account(Ending.BROKEN_OFF), [OK]),
        (account(Ending.BROKEN_OFF), []),
        (account(Ending.LEFT, was_heard=True), []),
        (account(Ending.LEFT, is_http=False), [LEFT]),
        (account(Ending.OPEN), [OK]),
    ],
)
def test_rows_that_tell_something_else_are_found(seen: Account, rows: list[Row]) -> None:
    assert differs(seen, rows) is not None
    assert len(check_ledger({"soak-1": seen}, {"soak-1": rows})) == 1


def test_a_row_that_nobody_asked_for_is_found() -> None:
    assert len(check_ledger({}, {"other": [OK]})) == 1


def test_an_engine_that_got_a_request_twice_is_found() -> None:
    ledger = {"soak-1": [FAILED, SECOND]}
    assert check_seen(ledger, {"moody": Counter(["soak-1"]), "steady": Counter()}) == []
    assert len(check_seen(ledger, {"steady": Counter(["soak-1", "soak-1"])})) == 1
    assert len(check_seen({}, {"steady": Counter(["soak-1"])})) == 1


HEADS = {
    "content-type": "text/event-stream; charset=utf-8",
    "x-request-id": "soak-1",
    "x-iir-attempts": "1",
}
FAULT = b'{"error":{"message":"m","type":"t","param":null,"code":"queue_full"}}'


def judged(
    body: bytes, *, api: str = "chat", status: int = 200, has_usage: bool = False, **more: Any
) -> Account:
    found = account(Ending.OPEN, api=api)
    headers = {**HEADS, **{name.replace("_", "-"): value for name, value in more.items()}}
    is_stream = headers["content-type"].startswith("text/event-stream") or status != 200
    judge(found, Head(status, headers), body, is_stream=is_stream, has_usage=has_usage)
    return found


TEXT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR_EVENT = b"data: " + FAULT + b"\n\n"
COMPLETED = b'event: response.completed\ndata: {"type":"response.completed"}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def test_streams_that_end_as_they_should_are_let_pass() -> None:
    assert judged(b": keep-alive\n\n" + TEXT + DONE).ending is Ending.WHOLE
    assert judged((TEXT + DONE).replace(b"\n", b"\r\n")).ending is Ending.WHOLE
    assert judged(TEXT + USAGE + DONE, has_usage=True).attempts == 1
    assert judged(TEXT + ERROR_EVENT).ending is Ending.BROKEN_OFF
    assert judged(COMPLETED, api="responses").ending is Ending.WHOLE
    assert judged(b'data: {"type":"response.failed"}\n\n', api="responses").has_own_end
    assert judged(STOP, api="messages").ending is Ending.WHOLE


@pytest.mark.parametrize(
    "body",
    [
        *(b"", TEXT, TEXT + b"data: [DONE]\n", TEXT + DONE + TEXT, TEXT + ERROR_EVENT + DONE),
        *(b"data: {broken\n\n" + DONE, b": keep-alive\n\n", TEXT + USAGE + DONE),
        b'data: {"text":"\xff"}\n\n' + DONE,
    ],
)
def test_streams_that_do_not_are_found(body: bytes) -> None:
    with pytest.raises(Wrong):
        judged(body)


def test_heads_and_errors_in_the_wrong_shape_are_found() -> None:
    with pytest.raises(Wrong, match="x-request-id"):
        judged(TEXT + DONE, x_request_id="another")
    with pytest.raises(Wrong, match="not for clients"):
        judged(TEXT + DONE, set_cookie="a=b")
    with pytest.raises(Wrong, match="without a result"):
        judged(b"{}", content_type="application/json")
    router: dict[str, Any] = {"x_iir_error_origin": "router"}
    assert judged(FAULT, status=503, **router).code == "queue_full"
    assert judged(FAULT, status=429, retry_after="1", **router).ending is Ending.ERROR
    for body in (b'{"error":"text"}', b'{"error":{"message":"m"}}', b"<html>"):
        with pytest.raises(Wrong):
            judged(body, status=503, **router)
    with pytest.raises(Wrong, match="x-iir-error-origin"):
        judged(FAULT, status=503)
    with pytest.raises(Wrong, match="retry-after"):
        judged(FAULT, status=429, **router)
    with pytest.raises(Wrong, match="Messages"):
        judged(FAULT, status=503, api="messages", **router)


def test_errors_and_alien_lines_in_the_log_are_found(tmp_path: Path) -> None:
    log = tmp_path / "router.log"
    line = json.dumps({"event": "request", "level": "info", "request_id": "soak-1"})
    error = json.dumps({"event": "internal_error", "level": "error"})
    accounts = {"soak-1": account()}
    log.write_text(line + "\n")
    assert check_log(log, accounts) == []
    for text, count in ((f"{line}\n{line}\n", 1), ("", 1), (f"{line}\n{error}\nTraceback\n", 2)):
        log.write_text(text)
        assert len(check_log(log, accounts)) == count


def test_the_log_tells_with_whom_the_router_had_begun(tmp_path: Path) -> None:
    log = tmp_path / "router.log"
    for duration_ms, was_heard in ((0.3, False), (250.0, True)):
        entry = {"event": "request", "request_id": "soak-1", "outcome": "abandoned"}
        log.write_text(json.dumps({**entry, "duration_ms": duration_ms}) + "\nno entry\n")
        accounts = {"soak-1": account(Ending.LEFT)}
        note_heard(log, accounts)
        assert accounts["soak-1"].was_heard is was_heard
        assert len(check_ledger(accounts, {})) == was_heard


METRICS = """\
# TYPE iir_attempts counter
iir_attempts_total{endpoint="steady",outcome="ok"} 1.0
iir_attempts_total{endpoint="moody",outcome="upstream_failed"} 1.0
# TYPE iir_refused counter
iir_refused_total{reason="queue_full"} 1.0
# TYPE iir_failovers counter
iir_failovers_total 1.0
"""


def test_counters_that_differ_from_the_ledger_are_found() -> None:
    ledger = {"a": [FAILED, SECOND], "b": [FULL]}
    assert check_metrics(parse_metrics(METRICS), ledger) == []
    assert len(check_metrics(parse_metrics(METRICS.replace('"ok"} 1', '"ok"} 2')), ledger)) == 2
    dropped = METRICS + "# TYPE iir_ledger_dropped counter\niir_ledger_dropped_total 1.0\n"
    assert len(check_metrics(parse_metrics(dropped), ledger)) == 1


def test_growth_compares_the_end_with_what_was_warm() -> None:
    assert growth([0.0] * 10 + [50.0] * 90) == 0.0
    assert growth([float(value) for value in range(100)]) == 65.0
    assert growth([]) == 0.0
    assert quantile([3.0, 1.0, 2.0], 1.0) == 3.0


def test_every_fault_exists_and_has_its_place() -> None:
    for text in (*EVERYWHERE, *IN_STREAMS):
        check_kinds(parse_faults(text))
    assert not STREAM_ONLY & {fault.kind for text in EVERYWHERE for fault in parse_faults(text)}
    assert choose_fault(Random(1), is_stream=False) in EVERYWHERE


def test_an_agent_is_asked_only_for_what_it_speaks() -> None:
    rng = Random(1)
    asks = [make_ask(rng, {"one": "a", "two": "b"}, model=AGENT_MODEL) for _ in range(50)]
    assert {ask.api for ask in asks} == {"chat", "completions", "embeddings"}
    assert {ask.is_stream for ask in asks} == {True, False}
