"""`/internal/models/{id}/logs`: what a model's engine has printed, and prints, as plain text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from local_agent.api.access import Need, allow
from local_agent.api.residency import found
from local_agent.intake import Intake
from local_agent.process.log import log_file, older_part
from local_agent.process.mask import Mask
from local_agent.process.reading import LogReader
from local_agent.supervisor import Supervisor
from shared.http.errors import NotFound

_POLL_S = 0.2
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}

Lines = Annotated[int, Query(ge=0, le=10_000)]


def log_routes(supervisor: Supervisor, intake: Intake, folder: Path, mask: Mask) -> APIRouter:
    """Return the route.

    Args:
        supervisor: knows the models.
        intake: tells when the agent ends, and with it what follows a log.
        folder: where the logs lie.
        mask: hides secrets.
    """
    routes = APIRouter(prefix="/internal/models", tags=["control"])

    @routes.get("/{model_id:path}/logs", summary="What a model's engine prints")
    @allow(Need.CONTROL)
    async def logs(model_id: str, lines: Lines = 100, follow: bool = False) -> StreamingResponse:
        path = log_file(folder, found(supervisor, model_id))
        if not follow and not (path.exists() or older_part(path).exists()):
            raise NotFound(f"There is no log of {model_id[:256]!r}: its worker never started here.")
        text = _text(LogReader(path, mask), lines, intake if follow else None)
        return StreamingResponse(text, media_type="text/plain; charset=utf-8", headers=_HEADERS)

    return routes


async def _text(reader: LogReader, lines: int, follow_until: Intake | None) -> AsyncIterator[str]:
    # read on the loop, as the log is rotated there: the two take turns
    last = reader.last(lines)
    # a megabyte is masked: not on the loop that carries everybody's streams
    yield await anyio.to_thread.run_sync(reader.shown, last)
    if follow_until is None:
        yield reader.rest()
        return
    while not follow_until.is_ending:
        text = reader.more()
        if text:
            yield text
        else:
            await anyio.sleep(_POLL_S)
