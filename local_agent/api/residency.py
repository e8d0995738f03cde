"""What `iir-agent load`, `unload`, `pin`, `unpin`, `reset` and `plan` ask of a running agent."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from local_agent.api.access import Need, allow
from local_agent.domain import ModelId
from local_agent.supervisor import Supervisor
from shared.http.errors import Conflict, ModelNotFound

_MOST_WAIT_S = 3600.0


class LoadCall(BaseModel):
    """How long a load is waited for."""

    model_config = ConfigDict(extra="forbid")

    wait_s: float = Field(default=0.0, ge=0, le=_MOST_WAIT_S)


def residency_routes(supervisor: Supervisor) -> APIRouter:
    """Return the routes that decide which models are in memory."""
    routes = APIRouter(prefix="/internal/models", tags=["control"])

    @routes.post("/{model_id:path}/load", summary="Load a model")
    @allow(Need.CONTROL)
    async def load(model_id: str, call: LoadCall) -> dict[str, Any]:
        model = found(supervisor, model_id)
        await supervisor.ensure_ready(model, call.wait_s)
        return _shown(supervisor, model)

    @routes.post("/{model_id:path}/unload", summary="Take a model out of memory, after its work")
    @allow(Need.CONTROL)
    async def unload(model_id: str) -> dict[str, Any]:
        model = found(supervisor, model_id)
        if supervisor.residency.is_pinned(model):
            raise Conflict(f"The model {model} is pinned. Unpin it first: iir-agent unpin {model}")
        supervisor.unload(model)
        return _shown(supervisor, model)

    @routes.post("/{model_id:path}/pin", summary="Keep a model in memory once it is there")
    @allow(Need.CONTROL)
    async def pin(model_id: str) -> dict[str, Any]:
        model = found(supervisor, model_id)
        supervisor.pin(model, is_pinned=True)
        return _shown(supervisor, model)

    @routes.post("/{model_id:path}/unpin", summary="Let a model make room for others")
    @allow(Need.CONTROL)
    async def unpin(model_id: str) -> dict[str, Any]:
        model = found(supervisor, model_id)
        supervisor.pin(model, is_pinned=False)
        return _shown(supervisor, model)

    @routes.post("/{model_id:path}/reset", summary="Forget the failures of a model's worker")
    @allow(Need.CONTROL)
    async def reset(model_id: str) -> dict[str, Any]:
        model = found(supervisor, model_id)
        supervisor.reset(model)
        return _shown(supervisor, model)

    @routes.post("/{model_id:path}/plan", summary="Say what a load would do, and do nothing")
    @allow(Need.CONTROL)
    async def plan(model_id: str) -> dict[str, Any]:
        return supervisor.outlook(found(supervisor, model_id)).as_values()

    return routes


def found(supervisor: Supervisor, name: str) -> ModelId:
    """Return the model of an id or alias.

    Raises:
        ModelNotFound: nobody has this name.
        Conflict: a server carries it that is not the agent's.
    """
    model = supervisor.resolve(name)
    if model is None:
        raise ModelNotFound(
            f"This agent does not know the model {name[:256]!r}. `iir-agent ls` lists what it has."
        )
    if supervisor.is_external(model):
        raise Conflict(
            f"The model {model} is on a server that is not the agent's: it only passes requests on."
        )
    return model


def _shown(supervisor: Supervisor, model: ModelId) -> dict[str, Any]:
    for view in supervisor.workers():
        if view.model == model:
            return {**asdict(view), "state": view.state.value}
    return {"model": model, "state": "cold"}
