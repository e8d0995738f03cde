"""What the simulated engine saw, so that a test can say what went upstream and what was cancelled."""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from shared.kit.clock import Clock
from shared.testing.wire import Exchange, Request

_KEPT = 10_000


@dataclass(slots=True, kw_only=True)
class Seen:
    """One request and what became of it.

    `aborted`: the client closed before the engine had ended its answer. `connection` counts the
    connections from 1, so that reuse shows. `events` are pieces of body sent. Times are seconds of
    the engine's monotonic clock.
    """

    method: str
    path: str
    target: str
    headers: tuple[tuple[str, str], ...]
    raw: bytes
    connection: int
    started_s: float
    body: object = None
    faults: tuple[str, ...] = ()
    status: int = 0
    events: int = 0
    aborted: bool = False
    first_byte_s: float | None = None
    ended_s: float | None = None

    def header(self, name: str) -> str | None:
        """Return the first header of this (lower-case) name."""
        return next((value for key, value in self.headers if key == name), None)

    def as_json(self) -> dict[str, object]:
        """Return the row of `GET /sim/requests`."""
        return {
            "method": self.method,
            "path": self.path,
            "target": self.target,
            "headers": [list(pair) for pair in self.headers],
            "body": self.body,
            "raw_base64": base64.b64encode(self.raw).decode(),
            "connection": self.connection,
            "faults": list(self.faults),
            "status": self.status,
            "events": self.events,
            "aborted": self.aborted,
            "started_s": self.started_s,
            "first_byte_s": self.first_byte_s,
            "ended_s": self.ended_s,
        }


@dataclass(slots=True)
class Journal:
    """The requests in the order in which they came; `/sim/…` is not among them."""

    clock: Clock
    entries: deque[Seen] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _waiters: list[asyncio.Future[None]] = field(default_factory=list)

    @contextmanager
    def entry(self, exchange: Exchange) -> Iterator[Seen]:
        """Record one request from its arrival to its end."""
        seen = _begin(exchange.request, self.clock())
        self.entries.append(seen)
        self.changed()
        try:
            yield seen
        finally:
            seen.aborted = exchange.client_left
            seen.ended_s = self.clock()
            self.changed()

    def changed(self) -> None:
        """Wake those who wait for something to be seen."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_for(self, is_true: Callable[[], bool], *, timeout_s: float = 2.0) -> None:
        """Wait until a condition on what was seen holds.

        Raises:
            TimeoutError: it does not within `timeout_s`.
        """
        try:
            await asyncio.wait_for(self._until(is_true), timeout_s)
        except asyncio.TimeoutError:
            raise TimeoutError(f"not seen within {timeout_s} s") from None

    async def _until(self, is_true: Callable[[], bool]) -> None:
        while not is_true():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter


def _begin(request: Request, now_s: float) -> Seen:
    return Seen(
        method=request.method,
        path=request.path,
        target=request.target,
        headers=request.headers,
        raw=request.body,
        connection=request.connection,
        started_s=now_s,
    )
