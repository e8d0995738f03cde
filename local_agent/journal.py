"""What has happened to the workers, in memory; wakes who waits for a change."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio

from local_agent.domain import ModelId, WorkerEvent, WorkerStatus
from shared.kit.clock import Clock

_RING = 1000


class Journal:
    """A bounded ring of events, and a version that grows with each change."""

    def __init__(self, wall: Clock, on_event: Callable[[WorkerEvent], None] | None = None) -> None:
        self._wall = wall
        self._on_event = on_event
        self._events: deque[WorkerEvent] = deque(maxlen=_RING)
        self._seq = 0
        self._version = 0
        self._changed = anyio.Event()

    @property
    def version(self) -> int:
        """Return a number that grows with each change."""
        return self._version

    def record(
        self, model: ModelId, before: WorkerStatus, after: WorkerStatus, request_id: str | None
    ) -> None:
        """Remember a transition."""
        self._seq += 1
        event = WorkerEvent(
            seq=self._seq,
            ts=self._wall(),
            worker=model,
            from_state=before.state,
            to_state=after.state,
            reason=after.reason,
            request_id=request_id,
        )
        self._events.append(event)
        if self._on_event is not None:
            self._on_event(event)
        self.notify()

    def since(self, seq: int) -> tuple[WorkerEvent, ...]:
        """Return the remembered events after `seq`, oldest first."""
        return tuple(event for event in self._events if event.seq > seq)

    def notify(self) -> None:
        """Say that something has changed."""
        self._version += 1
        waiting, self._changed = self._changed, anyio.Event()
        waiting.set()

    async def next(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    async def changed(self, seen: int) -> int:
        """Wait until `version` is over `seen`, and return it."""
        while self._version <= seen:
            await self._changed.wait()
        return self._version
