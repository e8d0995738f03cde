"""`/docs` and `/openapi.json`, from files of our own: no page of ours loads anything from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi

from router.api.access import allow
from router.domain import Scope
from shared.http.errors import NotFound
from shared.http.plain import PlainRoute

_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_QUESTION = "What is the capital of France?"
_MESSAGES = {"messages": [{"role": "user", "content": _QUESTION}]}
_INFERENCE: dict[str, tuple[str, dict[str, Any]]] = {
    "/chat/completions": ("Answer a chat (stream or not)", _MESSAGES),
    "/completions": ("Continue a text (stream or not)", {"prompt": "The capital of France is"}),
    "/embeddings": ("Embed texts", {"input": _QUESTION}),
    "/responses": (
        "Create a response (OpenAI's Responses; stream or not)",
        {"input": _QUESTION},
    ),
    "/messages": (
        "Create a message (Anthropic's Messages; stream or not)",
        {"max_tokens": 100, **_MESSAGES},
    ),
    "/messages/count_tokens": ("Count a message's tokens (Anthropic's Messages)", _MESSAGES),
}


def docs_routes(app: FastAPI, plain: Sequence[PlainRoute[Any]]) -> APIRouter:
    """Return the documentation's routes, and make `app` describe what it does not serve too."""
    routes = APIRouter(include_in_schema=False)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            shown = {route.path: route.described() for route in plain if route.summary}
            schema["paths"] = shown | schema["paths"]
            for path, (summary, example) in _INFERENCE.items():
                schema["paths"][f"/v1{path}"] = {"post": _operation(summary, example)}
            # for the page's button: a browser sends no key by itself
            bearer = {"type": "http", "scheme": "bearer", "bearerFormat": "sk-iir-…"}
            schema.setdefault("components", {})["securitySchemes"] = {"key": bearer}
            schema["security"] = [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend it

    @routes.get("/openapi.json")
    @allow(Scope.ADMIN, "docs")
    async def schema() -> dict[str, Any]:
        return openapi()

    @routes.get("/docs")
    @allow(Scope.ADMIN, "docs")
    async def page() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=f"{app.title}: API",
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url="data:,",
        )

    @routes.get("/docs/{name}")
    @allow(Scope.ADMIN, "docs")
    async def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise NotFound("There is no such file.")
        content = (files("fastapi_offline") / "static" / name).read_bytes()
        return Response(content, media_type=_ASSETS[name])

    return routes


def _operation(summary: str, example: dict[str, Any]) -> dict[str, Any]:
    body = {"schema": {"type": "object"}, "example": {"model": "default", **example}}
    return {
        "tags": ["inference"],
        "summary": summary,
        "description": "As in the API itself; unknown fields are passed on to the model's endpoint.",
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {"200": {"description": "As in the API itself: JSON, or an event stream."}},
    }
