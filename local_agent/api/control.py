"""Models, health, metrics, and what the agent's own command line asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from local_agent.api.access import Need, allow
from local_agent.config_file import ConfigError
from local_agent.domain import ModelId, WorkerState, WorkerView
from local_agent.pulls.jobs import PullJobs
from local_agent.reloading import Changes
from local_agent.supervisor import Supervisor
from local_agent.weights.progress import as_line, shown
from shared.contracts.agents import AgentModel
from shared.http.errors import BadRequest, ModelNotFound


def model_routes(supervisor: Supervisor, started_at: int) -> APIRouter:
    """Return the routes that list models; `started_at` is the agent's start, in s since 1970."""
    routes = APIRouter(prefix="/v1", tags=["models"])

    @routes.get("/models", summary="List all models, loaded or not")
    @allow(Need.DATA)
    async def list_models() -> dict[str, Any]:
        data = [_shown(model, started_at, supervisor) for model in supervisor.models()]
        return {"object": "list", "data": data}

    @routes.get("/models/{model_id:path}", summary="Describe one model")
    @allow(Need.DATA)
    async def describe_model(model_id: str) -> dict[str, Any]:
        found = supervisor.resolve(model_id)
        for model in supervisor.models():
            if model.id == found:
                return _shown(model, started_at, supervisor)
        raise ModelNotFound(
            f"This agent does not know the model {model_id[:256]!r}. GET /v1/models lists what it has.",
            param="model",
        )

    return routes


def _shown(model: AgentModel, created: int, supervisor: Supervisor) -> dict[str, Any]:
    status: dict[str, Any] = {"value": model.status}
    progress = supervisor.pull_marks.progress(ModelId(model.id))
    if progress is not None:
        status["progress"] = shown(progress)
    shown_model: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": created,
        "owned_by": model.engine or "agent",
        "aliases": list(model.aliases),
        "status": status,
        "is_pulled": model.is_pulled,
        "pull_command": model.pull_command,
        "context_length": model.context_tokens,
        "apis": None if model.apis is None else list(model.apis),
    }
    if model.bench:
        shown_model["bench"] = [row.model_dump(mode="json") for row in model.bench]
    return shown_model


def health_routes(
    status: Callable[[], str],
    standing: Callable[[], dict[str, str]],
    registry: CollectorRegistry,
) -> APIRouter:
    """Return `/health`, `/livez`, `/readyz` and `/metrics`.

    `status` returns how the agent is: `ready`, or why it takes no requests.
    """
    routes = APIRouter(tags=["operation"])

    @routes.get("/health", summary="Alive")
    @allow(Need.NOTHING)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/livez", summary="Alive")
    @allow(Need.NOTHING)
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/readyz", summary="Serving, and how it stands with its router")
    @allow(Need.NOTHING)
    async def readyz() -> Response:
        body = {"status": status(), **standing()}
        return JSONResponse(body, 200 if body["status"] == "ready" else 503)

    # load balancers and uptime checks ask like this
    for path, answer in (("/health", health), ("/livez", livez), ("/readyz", readyz)):
        routes.head(path, include_in_schema=False)(answer)

    @routes.get("/metrics", summary="Prometheus metrics")
    @allow(Need.DATA, "metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return routes


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
