"""`/docs` and `/openapi.json`, from files of our own: no page of ours loads anything from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi

from router.api.access import allow
from router.domain import Scope
from shared.http.errors import NotFound

_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
_SUMMARIES = {
    "/chat/completions": "Answer a chat (stream or not)",
    "/completions": "Continue a text (stream or not)",
    "/embeddings": "Embed texts",
    "/responses": "Create a response (OpenAI's Responses; stream or not)",
    "/messages": "Create a message (Anthropic's Messages; stream or not)",
    "/messages/count_tokens": "Count a message's tokens (Anthropic's Messages)",
}


def docs_routes(app: FastAPI) -> APIRouter:
    """Return the documentation's routes, and make `app` describe the inference routes too."""
    routes = APIRouter(include_in_schema=False)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path, summary in _SUMMARIES.items():
                schema["paths"][f"/v1{path}"] = {"post": _operation(summary)}
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


def _operation(summary: str) -> dict[str, Any]:
    example = {
        "model": "default",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    return {
        "tags": ["inference"],
        "summary": summary,
        "description": "As in OpenAI's API; unknown fields are passed on to the model's endpoint.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}, "example": example}},
        },
        "responses": {"200": {"description": "As in OpenAI's API: JSON, or an event stream."}},
    }
