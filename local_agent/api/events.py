"""`/internal/events`: each transition of a worker as a server-sent event.

`id` is the event's `seq`, and `Last-Event-ID` (or `since`) resumes behind it. A reader that has missed
some, since they are no longer remembered, gets an event `lost` first, with how many: null if that is
not known, since another agent counts them by now.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Protocol

import anyio
from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from local_agent.api.access import Need, allow
from local_agent.domain import WorkerEvent
from local_agent.intake import Intake

KEEP_ALIVE_S = 15.0
_BATCH = 100
_COMMENT = ": keep-alive\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}

Seq = Annotated[int | None, Query(ge=0)]
LastSeq = Annotated[int | None, Header(alias="last-event-id", ge=0)]


class Ring(Protocol):
    """The events that are remembered, and the wait for the next."""

    @property
    def version(self) -> int:
        """Return a number that grows with each change."""
        ...

    def events(self, since: int = 0) -> tuple[WorkerEvent, ...]:
        """Return the remembered events with `seq` over `since`, oldest first."""
        ...

    async def changed(self, seen: int) -> int:
        """Wait until `version` is over `seen`, and return it."""
        ...


def event_routes(ring: Ring, intake: Intake) -> APIRouter:
    """Return the route."""
    routes = APIRouter(prefix="/internal", tags=["control"])

    @routes.get("/events", summary="Transitions of workers, live")
    @allow(Need.CONTROL)
    async def events(
        since: Seq = None, follow: bool = True, last_event_id: LastSeq = None
    ) -> StreamingResponse:
        seen = since if last_event_id is None else last_event_id
        stream = event_stream(ring, intake, seen, follow=follow)
        return StreamingResponse(stream, media_type="text/event-stream", headers=_HEADERS)

    return routes


async def event_stream(
    ring: Ring,
    intake: Intake,
    since: int | None,
    *,
    follow: bool = True,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> AsyncIterator[str]:
    """Yield the remembered events after `since`, then what follows, until the agent ends.

    Holds nothing for a reader that is slow: it reads on in the ring, and is told what it has missed.

    Args:
        ring: the events.
        intake: tells when the agent ends.
        since: the last `seq` that the reader has seen; None: it wants all that are remembered.
        follow: go on with what happens from now on.
        keep_alive_s: how often an idle stream gets a comment.
    """
    known = ring.events()
    oldest, newest = (known[0].seq, known[-1].seq) if known else (1, 0)
    is_foreign = since is not None and since > newest
    seen = oldest - 1 if since is None or is_foreign else since
    if is_foreign:
        yield _lost(None)
    while True:
        version = ring.version
        batch = ring.events(seen)[:_BATCH]
        if batch:
            missed = batch[0].seq - seen - 1
            seen = batch[-1].seq
            yield (_lost(missed) if missed else "") + "".join(map(_rendered, batch))
        elif intake.is_ending or not follow:
            return
        else:
            with anyio.move_on_after(keep_alive_s) as pause:
                await ring.changed(version)
            if pause.cancelled_caught:
                yield _COMMENT


def _lost(number: int | None) -> str:
    return f"event: lost\ndata: {json.dumps({'lost': number})}\n\n"


def _rendered(event: WorkerEvent) -> str:
    values = {
        "seq": event.seq,
        "ts": event.ts,
        "worker": event.worker,
        "from": event.from_state.value,
        "to": event.to_state.value,
        "reason": event.reason,
        "request_id": event.request_id,
    }
    return f"id: {event.seq}\ndata: {json.dumps(values)}\n\n"
