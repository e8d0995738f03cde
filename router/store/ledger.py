"""The usage ledger: one row per attempt, written in batches behind the requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final

from sqlalchemy import Connection, insert
from sqlalchemy.dialects import sqlite

from router.domain import EndpointId, Outcome, RequestFacts, Zone
from router.ports import OutcomeSink
from router.store.errors import StoreError
from router.store.tables import usage
from router.store.writer import RegistryWriter
from shared.kit.clock import Clock, wall_time

ZoneOf = Callable[[EndpointId], "Zone | None"]
Row = tuple[Any, ...]

# What a row holds, in this order.
_COLUMNS: Final = (
    "ts",
    "request_id",
    "model",
    "endpoint",
    "zone",
    "key_id",
    "attempt",
    "status",
    "error",
    "input_tokens",
    "output_tokens",
    "ttft_s",
    "total_s",
)
_INSERT: Final = str(insert(usage).compile(dialect=sqlite.dialect(), column_keys=_COLUMNS))
# Each statement lets go of the interpreter and has to get it back from the thread that serves requests, which
# costs more than a row. SQLite took 999 values in a statement before its version 3.32.
_AT_ONCE: Final = 64
_PLACES: Final = f"({', '.join('?' * len(_COLUMNS))})"
_INSERT_MANY: Final = f"{_INSERT.partition('VALUES')[0]}VALUES {', '.join([_PLACES] * _AT_ONCE)}"


class UsageLedger(OutcomeSink):
    """Takes outcomes on the event loop and keeps them until `flush` has written them."""

    def __init__(
        self,
        writer: RegistryWriter,
        *,
        clock: Clock = wall_time,
        zone_of: ZoneOf = lambda _: None,
        most_waiting: int = 10_000,
        batch: int = 2_000,
    ) -> None:
        """Write through `writer`.

        Args:
            writer: where the rows go.
            clock: seconds since 1970.
            zone_of: the zone of an endpoint, None if it is not known.
            most_waiting: rows kept in memory; further ones are dropped and counted.
            batch: rows per transaction.
        """
        self._writer = writer
        self._clock = clock
        self._zone_of = zone_of
        self._most_waiting = most_waiting
        self._batch = batch
        self._rows: list[Row] = []
        self._flushing = asyncio.Lock()
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Return how many rows are not written yet."""
        return len(self._rows)

    def record(self, facts: RequestFacts, outcome: Outcome) -> None:
        """Keep one outcome for the next `flush`.

        A request that ended outside of any attempt has no endpoint (`""`), and so no zone.
        """
        if len(self._rows) >= self._most_waiting:
            self.dropped += 1
            return
        endpoint = outcome.endpoint
        zone = self._zone_of(endpoint) if endpoint else None
        self._rows.append(
            (
                self._clock(),
                facts.request_id,
                facts.model,
                endpoint,
                None if zone is None else zone.value,
                facts.key_id,
                outcome.attempt,
                outcome.status,
                outcome.error,
                outcome.input_tokens,
                outcome.output_tokens,
                outcome.ttft_s,
                outcome.total_s,
            )
        )

    async def flush(self) -> int:
        """Write what waits and return how many rows; what can't be written waits on.

        To be shielded from cancellation: the transaction would go on, and its rows stay here.
        """
        async with self._flushing:
            return await self._write()

    async def _write(self) -> int:
        written, most = 0, self._batch
        while self._rows:
            # New rows come at the other end, and a full ledger takes none: what is written here
            # is what is removed here.
            rows = self._rows[:most]
            try:
                await self._writer.run(partial(_insert, rows=rows))
            except StoreError:
                break
            except (ValueError, OverflowError):
                # One row that no registry takes must not hold up the others for ever.
                if len(rows) > 1:
                    most = len(rows) // 2
                    continue
                self.dropped += 1
            else:
                written += len(rows)
            del self._rows[: len(rows)]
        return written


def _insert(connection: Connection, rows: Sequence[Row]) -> None:
    if connection.dialect.paramstyle == "qmark":
        # Past SQLAlchemy's handling of each row, which costs more than SQLite's.
        whole = len(rows) // _AT_ONCE * _AT_ONCE
        for start in range(0, whole, _AT_ONCE):
            values = tuple(chain.from_iterable(rows[start : start + _AT_ONCE]))
            connection.exec_driver_sql(_INSERT_MANY, values)
        if whole < len(rows):
            connection.exec_driver_sql(_INSERT, list(rows[whole:]))
    else:
        named = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        connection.execute(insert(usage), named)
