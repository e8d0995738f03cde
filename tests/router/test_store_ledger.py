"""The usage ledger: nothing is lost while the registry is away, nothing is written twice."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from router.domain import EndpointId, KeyId, ModelName, Outcome, RequestFacts, Zone
from router.store.ledger import UsageLedger
from router.store.tables import usage
from router.store.writer import RegistryWriter


def facts(n: int = 0) -> RequestFacts:
    return RequestFacts(
        request_id=f"r-{n}",
        model=ModelName("smol"),
        stream=True,
        path="/chat/completions",
        key_id=KeyId("key-1"),
    )


OUTCOME = Outcome(
    endpoint=EndpointId("agent:1"),
    attempt=1,
    status=200,
    ttft_s=0.25,
    total_s=1.5,
    input_tokens=7,
    output_tokens=11,
)


def rows(writer: RegistryWriter) -> list[dict[str, Any]]:
    return writer.run_sync(
        lambda c: [dict(row._mapping) for row in c.execute(select(usage).order_by(usage.c.id))]
    )


async def test_outcomes_become_rows(writer: RegistryWriter) -> None:
    ledger = UsageLedger(writer, clock=lambda: 12.5, zone_of=lambda _: Zone.LOCAL)
    ledger.record(facts(), OUTCOME)
    assert ledger.waiting == 1
    assert await ledger.flush() == 1
    assert ledger.waiting == 0
    assert rows(writer) == [
        {
            "id": 1,
            "ts": 12.5,
            "request_id": "r-0",
            "model": "smol",
            "endpoint": "agent:1",
            "zone": "local",
            "key_id": "key-1",
            "attempt": 1,
            "status": 200,
            "error": None,
            "input_tokens": 7,
            "output_tokens": 11,
            "ttft_s": 0.25,
            "total_s": 1.5,
        }
    ]
    assert await ledger.flush() == 0


async def test_request_without_an_attempt_has_no_endpoint_and_no_zone(
    writer: RegistryWriter,
) -> None:
    ledger = UsageLedger(writer, zone_of=lambda _: Zone.LOCAL)
    refused = msgspec.structs.replace(
        OUTCOME, endpoint=EndpointId(""), attempt=0, status=429, ttft_s=None, error="queue_full"
    )
    ledger.record(facts(), refused)
    assert await ledger.flush() == 1
    [row] = rows(writer)
    assert (row["endpoint"], row["zone"], row["attempt"], row["ttft_s"]) == ("", None, 0, None)


@pytest.mark.parametrize(
    "wrong",
    [
        (facts(3), msgspec.structs.replace(OUTCOME, input_tokens=2**70)),
        (facts(3), msgspec.structs.replace(OUTCOME, error="\ud800")),
    ],
)
async def test_row_that_no_registry_takes_does_not_hold_up_the_others(
    writer: RegistryWriter, wrong: tuple[RequestFacts, Outcome]
) -> None:
    ledger = UsageLedger(writer, batch=5)
    for n in range(7):
        ledger.record(*(wrong if n == 3 else (facts(n), OUTCOME)))
    assert await ledger.flush() == 6
    assert (ledger.waiting, ledger.dropped) == (0, 1)
    assert [row["request_id"] for row in rows(writer)] == [f"r-{n}" for n in range(7) if n != 3]


async def test_rows_wait_while_the_registry_is_away(path: Path, writer: RegistryWriter) -> None:
    ledger = UsageLedger(writer, batch=2)
    for n in range(5):
        ledger.record(facts(n), OUTCOME)
    shutil.move(path, path.with_suffix(".away"))
    assert await ledger.flush() == 0
    assert ledger.waiting == 5
    shutil.move(path.with_suffix(".away"), path)
    assert await ledger.flush() == 5
    assert [row["request_id"] for row in rows(writer)] == [f"r-{n}" for n in range(5)]
    assert rows(writer)[0]["zone"] is None


async def test_full_ledger_drops_and_counts(writer: RegistryWriter) -> None:
    ledger = UsageLedger(writer, most_waiting=3)
    for n in range(5):
        ledger.record(facts(n), OUTCOME)
    assert (ledger.waiting, ledger.dropped) == (3, 2)
    await ledger.flush()
    assert [row["request_id"] for row in rows(writer)] == ["r-0", "r-1", "r-2"]


async def test_flushes_at_once_write_each_row_once(writer: RegistryWriter) -> None:
    ledger = UsageLedger(writer, batch=1)
    for n in range(4):
        ledger.record(facts(n), OUTCOME)
    written = await asyncio.gather(ledger.flush(), ledger.flush(), ledger.flush())
    assert sum(written) == len(rows(writer)) == 4
