"""How the engines differ where a router can tell: errors, open routes, names, small fields."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

PersonaName = Literal["vllm", "llamacpp", "openai"]
SERVER = "simulated-engine"
VERSION = "0.32.0+simulated"
FINGERPRINT = "simulated-engine"
OWNER = "simulated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """One engine's manners. All of them answer `/health` and say that they are simulated.

    `metrics_prefix` is empty if there is no `/metrics`. `role_content` is the content of a
    stream's first delta. `repeats_request_id`: `x-request-id` becomes a part of the answer's id.
    """

    name: PersonaName
    metrics_prefix: str
    health_body: bytes = b""
    version_route: bool = False
    role_content: str | None = ""
    knows_only_its_models: bool = True
    repeats_request_id: bool = False
    finish_event_is_empty: bool = True
    headers: tuple[tuple[str, str], ...] = field(default=())


VLLM = Persona(
    name="vllm",
    metrics_prefix="vllm:",
    version_route=True,
    repeats_request_id=True,
    finish_event_is_empty=False,
)
LLAMACPP = Persona(
    name="llamacpp",
    metrics_prefix="llamacpp:",
    health_body=b'{"status":"ok"}',
    role_content=None,
    knows_only_its_models=False,
)
OPENAI = Persona(
    name="openai",
    metrics_prefix="",
    headers=(
        ("openai-processing-ms", "1"),
        ("openai-version", "2020-10-01"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-remaining-requests", "9999"),
        ("x-ratelimit-reset-requests", "6ms"),
    ),
)


def persona_named(name: str) -> Persona:
    """Return a persona.

    Raises:
        LookupError: no persona has this name.
    """
    known: dict[str, Persona] = {persona.name: persona for persona in (VLLM, LLAMACPP, OPENAI)}
    if name not in known:
        raise LookupError(f"unknown persona {name!r}; known: {', '.join(known)}")
    return known[name]


def error_json(
    persona: Persona,
    status: int,
    message: str,
    *,
    kind: str = "",
    code: str | None = None,
    param: str | None = None,
) -> bytes:
    """Return an error body in the persona's shape.

    Args:
        persona: who answers.
        status: vLLM and llama.cpp repeat it as `code`.
        message: the text.
        kind: the `type`; unset is what the persona says for this status.
        code: OpenAI's `code`.
        param: the parameter that is at fault.
    """
    if persona.name == "vllm":
        kind = kind or {404: "NotFoundError", 400: "BadRequestError"}.get(status, "InternalError")
        error: dict[str, object] = {"message": message, "type": kind, "param": param}
        return _dump({"error": {**error, "code": status}})
    if persona.name == "llamacpp":
        names = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
        kind = kind or names.get(status, "unavailable_error" if status == 503 else "server_error")
        return _dump({"error": {"code": status, "message": message, "type": kind}})
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    return _dump({"error": {"message": message, "type": kind, "param": param, "code": code}})


def unknown_model(persona: Persona, model: str, models: tuple[str, ...]) -> bytes:
    """Return the body of the 404 for a model that is not served."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    if persona.name == "vllm":
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(models)}."
    return error_json(persona, 404, message, code="model_not_found", param="model")


def unknown_route(persona: Persona, status: int = 404) -> bytes:
    """Return the body of a 404 or 405 for a route."""
    text = {404: "Not Found", 405: "Method Not Allowed"}[status]
    if persona.name == "vllm":
        return _dump({"detail": text})
    return error_json(persona, status, text)


def unauthorized(persona: Persona) -> bytes:
    """Return the body of the 401; the key that was sent is not repeated."""
    if persona.name == "vllm":
        return _dump({"error": "Unauthorized"})
    message = "Invalid API Key" if persona.name == "llamacpp" else "Incorrect API key provided."
    return error_json(persona, 401, message, code="invalid_api_key")


def loading(persona: Persona) -> bytes:
    """Return the body of the 503 while the model loads."""
    return error_json(persona, 503, "Loading model")


def _dump(data: object) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()
