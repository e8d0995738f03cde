"""What `iir-agent pull` and `iir-agent rm` ask of a running agent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from local_agent.api.access import Need, allow
from local_agent.api.residency import found
from local_agent.domain import ModelId
from local_agent.lifecycle import ALIVE
from local_agent.pulls.jobs import JobView, PullJobs
from local_agent.supervisor import Supervisor
from local_agent.weights.errors import PullError
from shared.http.errors import Conflict, NotFound


def pull_routes(
    supervisor: Supervisor, jobs: PullJobs, remove: Callable[[ModelId], Awaitable[bool]]
) -> APIRouter:
    """Return the routes of pulls; only models that the agent's file knows can be named.

    `remove` takes away what was pulled for a model, and tells whether there was anything.
    """
    routes = APIRouter(prefix="/internal", tags=["control"])

    @routes.get("/pulls", summary="The last pull of each model")
    @allow(Need.CONTROL)
    async def list_pulls() -> list[dict[str, Any]]:
        return [shown(view) for view in jobs.views()]

    @routes.post("/models/{model_id:path}/pull", status_code=202, summary="Pull, or join the pull")
    @allow(Need.CONTROL)
    async def start(model_id: str) -> dict[str, Any]:
        return shown(jobs.start(found(supervisor, model_id)))

    @routes.get("/models/{model_id:path}/pull", summary="Follow a pull, as server-sent events")
    @allow(Need.CONTROL)
    async def follow(model_id: str) -> StreamingResponse:
        model = found(supervisor, model_id)
        _job(jobs, model)
        return StreamingResponse(_events(jobs, model), media_type="text/event-stream")

    @routes.delete("/models/{model_id:path}/pull", summary="Stop a pull; what has come is kept")
    @allow(Need.CONTROL)
    async def cancel(model_id: str) -> dict[str, Any]:
        model = found(supervisor, model_id)
        return shown(await jobs.cancel(model) or _job(jobs, model))

    @routes.delete("/models/{model_id:path}/weights", summary="Remove what was pulled for a model")
    @allow(Need.CONTROL)
    async def remove_weights(model_id: str) -> dict[str, Any]:
        model = found(supervisor, model_id)
        _require_unused(supervisor, jobs, model)
        try:
            is_removed = await remove(model)
        except PullError as error:
            raise Conflict(f"The weights of {model} were not removed: {error}") from error
        if not is_removed:
            raise NotFound(f"There are no weights of {model} to remove.")
        return {"removed": model}

    return routes


def shown(view: JobView) -> dict[str, Any]:
    """Return a job as JSON; the fields of its progress stand beside its own."""
    progress = {} if view.progress is None else asdict(view.progress)
    result = None if view.result is None else asdict(view.result)
    own = {"model": view.model, "state": view.state.value, "error": view.error, "result": result}
    return {**progress, **own}


def _job(jobs: PullJobs, model: ModelId) -> JobView:
    view = jobs.view(model)
    if view is None:
        raise NotFound(f"No pull of {model} has run. Start one: iir-agent pull {model}")
    return view


async def _events(jobs: PullJobs, model: ModelId) -> AsyncIterator[bytes]:
    async for view in jobs.follow(model):
        yield f"data: {json.dumps(shown(view))}\n\n".encode()


def _require_unused(supervisor: Supervisor, jobs: PullJobs, model: ModelId) -> None:
    """Refuse to take weights from under a worker or a pull; models may share a repository."""
    view = jobs.view(model)
    if view is not None and not view.is_over:
        raise Conflict(f"The model {model} is being pulled. Stop that first, with Ctrl-C.")
    weights = _weights(supervisor, model)
    for worker in supervisor.workers():
        is_same = worker.model == model or (
            weights and weights == _weights(supervisor, worker.model)
        )
        if is_same and worker.state in ALIVE:
            command = f"iir-agent unload {worker.model}"
            raise Conflict(f"The model {worker.model} is loaded. Unload it first: {command}")


def _weights(supervisor: Supervisor, model: ModelId) -> Path | str | None:
    """Return where the weights of the model lie, or for a container which repository it is."""
    entry = supervisor.entry(model)
    if entry is None or entry.deployment.pulled is None:
        return None if entry is None else entry.deployment.weights
    return entry.deployment.pulled.repo
