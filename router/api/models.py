"""`/v1/models`: what a client may ask for."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from router.api.access import allow
from router.domain import Scope
from router.fleet.listing import ListedModel
from router.fleet.registry import Fleet
from shared.http.errors import ModelNotFound


def model_routes(fleet: Fleet) -> APIRouter:
    """Return the routes that list models, in OpenAI's shape, from memory."""
    routes = APIRouter(tags=["models"])

    @routes.get("/models", include_in_schema=False)
    @routes.get("/v1/models", summary="List models")
    @allow(Scope.INFERENCE)
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_shown(model) for model in fleet.models()]}

    # the path converter takes ids with slashes (`org/model`)
    @routes.get("/models/{model_id:path}", include_in_schema=False)
    @routes.get("/v1/models/{model_id:path}", summary="Describe one model")
    @allow(Scope.INFERENCE)
    async def describe_model(model_id: str) -> dict[str, Any]:
        for model in fleet.models():
            if model_id == model.id or model_id in model.aliases:
                return _shown(model)
        raise ModelNotFound(
            f"The model {model_id[:256]!r} does not exist. GET /v1/models lists what is there.",
            param="model",
        )

    return routes


def _shown(model: ListedModel) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": model.created_at,
        "owned_by": model.owned_by,
        "aliases": list(model.aliases),
    }
    if model.status is not None:
        shown["status"] = {"value": model.status}
    if model.context_tokens is not None:
        shown["context_length"] = model.context_tokens
    if model.bench:
        shown["bench"] = [row.model_dump(mode="json") for row in model.bench]
    return shown
