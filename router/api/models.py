"""`/v1/models`: what a client may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from router.domain import Scope
from router.fleet.listing import ListedModel
from router.fleet.registry import Fleet
from shared.http.errors import ModelNotFound
from shared.http.plain import Answer, PlainRoute


def model_routes(fleet: Fleet) -> Sequence[PlainRoute[Scope | None]]:
    """Return the routes that list models, in OpenAI's shape, from memory."""

    def list_models() -> Answer:
        shown = [_shown(model) for model in fleet.models()]
        return Answer(msgspec.json.encode({"object": "list", "data": shown}))

    def describe_model(model_id: str) -> Answer:
        for model in fleet.models():
            if model_id == model.id or model_id in model.aliases:
                return Answer(msgspec.json.encode(_shown(model)))
        raise ModelNotFound(
            f"The model {model_id[:256]!r} does not exist. GET /v1/models lists what is there.",
            param="model",
        )

    def routes(
        path: str, summary: str, answer: Callable[..., Answer]
    ) -> Sequence[PlainRoute[Scope | None]]:
        return [
            PlainRoute(
                path=f"{base}{path}",
                summary=summary if base else "",
                answer=answer,
                tag="models",
                needed=Scope.INFERENCE,
            )
            for base in ("/v1", "")
        ]

    return (
        *routes("/models", "List models", list_models),
        # ids have slashes (`org/model`)
        *routes("/models/{model_id}", "Describe one model", describe_model),
    )


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
