"""What is read of an agent all the time: its models, its health, its metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from local_agent.api.access import Need
from local_agent.domain import ModelId
from local_agent.supervisor import Supervisor
from local_agent.weights.progress import shown
from shared.contracts.agents import AgentModel
from shared.http.errors import ModelNotFound
from shared.http.plain import Answer, PlainRoute, operation_routes


def model_routes(supervisor: Supervisor, started_at: int) -> Sequence[PlainRoute[Need]]:
    """Return the routes that list models; `started_at` is the agent's start, in s since 1970."""

    def list_models() -> Answer:
        data = [_shown(model, started_at, supervisor) for model in supervisor.models()]
        return Answer(msgspec.json.encode({"object": "list", "data": data}))

    def describe_model(model_id: str) -> Answer:
        found = supervisor.resolve(model_id)
        for model in supervisor.models():
            if model.id == found:
                return Answer(msgspec.json.encode(_shown(model, started_at, supervisor)))
        raise ModelNotFound(
            f"This agent does not know the model {model_id[:256]!r}. GET /v1/models lists what it has.",
            param="model",
        )

    def route(path: str, summary: str, answer: Callable[..., Answer]) -> PlainRoute[Need]:
        return PlainRoute(path=path, summary=summary, answer=answer, tag="models", needed=Need.DATA)

    return (
        route("/v1/models", "List all models, loaded or not", list_models),
        route("/v1/models/{model_id}", "Describe one model", describe_model),
    )


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
) -> Sequence[PlainRoute[Need]]:
    """Return `/health`, `/livez`, `/readyz` and `/metrics`.

    `status` returns how the agent is: `ready`, or why it takes no requests.
    """

    def readyz() -> Answer:
        body = {"status": status(), **standing()}
        return Answer(msgspec.json.encode(body), 200 if body["status"] == "ready" else 503)

    return operation_routes(
        readyz,
        registry,
        nothing=Need.NOTHING,
        metrics=Need.DATA,
        ready="Serving, and how it stands with its router",
    )
