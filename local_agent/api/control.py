"""What the agent's own command line asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from local_agent.api.access import Need, allow
from local_agent.config_file import ConfigError
from local_agent.domain import WorkerState, WorkerView
from local_agent.pulls.jobs import PullJobs
from local_agent.reloading import Changes
from local_agent.supervisor import Supervisor
from local_agent.weights.progress import as_line
from shared.http.errors import BadRequest


def control_routes(
    supervisor: Supervisor,
    reload: Callable[[], Awaitable[Changes]],
    examine: Callable[[], Awaitable[list[dict[str, Any]]]],
    pulls: PullJobs,
) -> APIRouter:
    """Return what `iir-agent` asks of a running agent.

    `reload` reads the configuration and the weights anew, or raises `ConfigError`; `examine` returns
    the findings of `iir-agent doctor`, as the agent sees them; `pulls` know how far a worker is that is
    being pulled.
    """
    routes = APIRouter(prefix="/internal", tags=["control"])

    @routes.get("/workers", summary="Workers as observed")
    @allow(Need.CONTROL)
    async def workers() -> list[dict[str, Any]]:
        return [_worker(view, pulls) for view in supervisor.workers()]

    @routes.post("/reload", summary="Read configuration and weights anew")
    @allow(Need.CONTROL)
    async def reload_all() -> dict[str, Any]:
        try:
            changes = await reload()
        except ConfigError as error:
            raise BadRequest(f"{error}. The agent keeps its present configuration.") from error
        models = [model.id for model in supervisor.models()]
        return {"models": models, **changes.as_values()}

    @routes.get("/doctor", summary="What is wrong, and how to put it right")
    @allow(Need.CONTROL)
    async def doctor() -> list[dict[str, Any]]:
        return await examine()

    return routes


def _worker(view: WorkerView, pulls: PullJobs) -> dict[str, Any]:
    job = pulls.view(view.model) if view.state is WorkerState.PULLING else None
    progress = None if job is None else job.progress
    reason = "waits for other pulls" if job and progress is None else view.reason
    line = reason if progress is None else as_line(progress)
    return {**asdict(view), "state": view.state.value, "reason": line}
