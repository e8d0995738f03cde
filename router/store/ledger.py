"""The usage ledger: one row per attempt, written in batches behind the requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

from sqlalchemy import Connection, insert

from router.domain import EndpointId, Outcome, RequestFacts, Zone
from router.ports import OutcomeSink
from router.store.errors import StoreError
from router.store.tables import usage
from router.store.writer import RegistryWriter
from shared.kit.clock import Clock, wall_time

ZoneOf = Callable[[EndpointId], "Zone | None"]


class UsageLedger(OutcomeSink):
    """Takes outcomes on the event loop and keeps them until `flush` has written them."""

    def __init__(
        self,
        writer: RegistryWriter,
        *,
        clock: Clock = wall_time,
        zone_of: ZoneOf = lambda _: None,
        most_waiting: int = 10_000,
        batch: int = 500,
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
        self._rows: deque[dict[str, Any]] = deque()
        self._flushing = asyncio.Lock()
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Return how many rows are not written yet."""
        return len(self._rows)

    def record(self, facts: RequestFacts, outcome: Outcome) -> None:
        """Keep one outcome for the next `flush`."""
        if len(self._rows) >= self._most_waiting:
            self.dropped += 1
            return
        zone = self._zone_of(outcome.endpoint)
        self._rows.append(
            {
                "ts": self._clock(),
                "request_id": facts.request_id,
                "model": facts.model,
                "endpoint": outcome.endpoint,
                "zone": None if zone is None else zone.value,
                "key_id": facts.key_id,
                "attempt": outcome.attempt,
                "status": outcome.status,
                "error": outcome.error,
                "input_tokens": outcome.input_tokens,
                "output_tokens": outcome.output_tokens,
                "ttft_s": outcome.ttft_s,
                "total_s": outcome.total_s,
            }
        )

    async def flush(self) -> int:
        """Write what waits and return how many rows; what can't be written waits on."""
        written = 0
        async with self._flushing:
            while self._rows:
                # New rows come at the other end, and a full ledger takes none: what is written
                # here is what is removed here.
                rows = list(islice(self._rows, self._batch))
                try:
                    await self._writer.run(partial(_insert, rows=rows))
                except StoreError:
                    break
                for _ in rows:
                    self._rows.popleft()
                written += len(rows)
        return written


def _insert(connection: Connection, rows: list[dict[str, Any]]) -> None:
    connection.execute(insert(usage), rows)
