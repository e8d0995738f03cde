"""`docs/routes.md`: the routes of router and agent, from their OpenAPI documents."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI

import local_agent.settings
import router.settings
from local_agent.api.access import AgentAccess
from local_agent.api.infer import InferCall
from local_agent.app import Agent
from local_agent.this_host import read_config
from router.api.access import Access
from router.app import Router
from scripts.reference.writing import table
from shared.contracts.apis import INFERENCE_PATHS
from shared.http.origin import OriginRules

HEAD = """\
# Routes

<!-- Written by `make docs` from the OpenAPI documents of router and agent; edit the routes' summaries. -->

What each route takes. Headers, streams and who may ask: [API](api.md); what errors mean: [Errors](errors.md). A running
router has its document at `/openapi.json`, and a page to try it at `/docs`. Inference routes answer without `/v1` as well.
Their bodies are OpenAI's or Anthropic's own and pass as they came; the router reads `model`, `stream` and
`stream_options`.

"""
_INFER = "/infer"
_RULES = OriginRules("127.0.0.1", "ROUTER_ALLOWED_HOSTS")


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the OpenAPI document of each service; nothing is started."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        service = Router(router.settings.load_settings(iir_home=home))
        routes = service.control_app(Access(service.fleet, _RULES, frozenset()))
        document = _document(routes)
        yield "The router", document
        settings = local_agent.settings.load_settings(iir_home=home)
        agent = Agent(settings, read_config(settings), 5000)
        own = _document(agent.control_app(AgentAccess(_RULES, "")))
        own["paths"] = _plain_of_the_agent(agent, document) | own["paths"]
        own["components"]["schemas"]["InferCall"] = msgspec.json.schema(InferCall)["$defs"][
            "InferCall"
        ]
        yield "The agent", own


def _document(app: FastAPI) -> dict[str, Any]:
    document = app.openapi()
    document.setdefault("components", {}).setdefault("schemas", {})
    return document


def _plain_of_the_agent(agent: Agent, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the agent serves in front of its FastAPI routes: what is read, inference, and `/infer`."""
    found = {route.path: route.described() for route in agent.plain_routes() if route.summary}
    found |= {f"/v1{path}": document["paths"][f"/v1{path}"] for path in INFERENCE_PATHS}
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/InferCall"}}}
    found[_INFER] = {
        "post": {
            "tags": ["inference"],
            "summary": "A prompt in, a text out (stream or not)",
            "requestBody": {"content": body},
        }
    }
    return found


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for name, document in documents():
        operations = sorted(_operations(document), key=lambda one: _order(one[2]))
        rows = [
            [f"`{method.upper()} {path}`", operation["summary"], _takes(operation)]
            for path, method, operation in operations
        ]
        parts += [f"## {name}\n\n", table(["route", "what", "takes"], rows), "\n"]
        parts += [_schema(title, document) for title in _bodies(operations, document)]
    return "".join(parts)


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _order(operation: Mapping[str, Any]) -> int:
    return ["inference", "models", "operation", "agents", "control"].index(operation["tags"][0])


def _body(operation: Mapping[str, Any]) -> Mapping[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    found: Mapping[str, Any] = content.get("application/json", {}).get("schema", {})
    return found


def _names(schema: Mapping[str, Any]) -> list[str]:
    """Return the names of the schemas that this one refers to by itself."""
    options = [schema, *schema.get("anyOf", ()), schema.get("items", {})]
    return [one["$ref"].rpartition("/")[2] for one in options if "$ref" in one]


def _takes(operation: Mapping[str, Any]) -> str:
    query = [
        f"`?{one['name']}=`" for one in operation.get("parameters", ()) if one["in"] == "query"
    ]
    bodies = [f"[`{name}`](#{name.lower()})" for name in _names(_body(operation))]
    return ", ".join([*bodies, *query])


def _bodies(
    operations: list[tuple[str, str, Mapping[str, Any]]], document: Mapping[str, Any]
) -> list[str]:
    """Return the names of the schemas of all bodies, and of those within them."""
    found = [name for *_, one in operations for name in _names(_body(one))]
    for name in found:  # grows while it is read
        fields = document["components"]["schemas"][name].get("properties", {}).values()
        found += [inner for field in fields for inner in _names(field) if inner not in found]
    return list(dict.fromkeys(found))


def _schema(name: str, document: Mapping[str, Any]) -> str:
    schema = document["components"]["schemas"][name]
    required = set(schema.get("required", ()))
    rows = [
        [
            f"`{field}`",
            _type(value),
            "required" if field in required else _json(value.get("default")),
        ]
        for field, value in schema.get("properties", {}).items()
    ]
    return f"### {name}\n\n{table(['field', 'type', 'default'], rows)}\n"


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one) for one in schema["anyOf"]))
    if names := _names({key: value for key, value in schema.items() if key == "$ref"}):
        return f"[{names[0]}](#{names[0].lower()})"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _json(value: object) -> str:
    return "" if value is None else f"`{msgspec.json.encode(value).decode()}`"
