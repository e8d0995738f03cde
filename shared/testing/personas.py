"""How the engines differ where a router can tell: errors, open routes, names, small fields."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Literal

PersonaName = Literal["vllm", "llamacpp", "openai", "anthropic"]
Api = Literal["chat", "responses", "messages"]
SERVER = "simulated-engine"
VERSION = "0.32.0+simulated"
FINGERPRINT = "simulated-engine"
OWNER = "simulated"
RESPONSES_PATH = "/v1/responses"
MESSAGES_PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"
_CHAT_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_MESSAGES_PATHS = (MESSAGES_PATH, COUNT_PATH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """One engine's manners. All of them answer `/health` and say that they are simulated.

    `metrics_prefix` is empty if there is no `/metrics`. `role_content` is the content of a
    stream's first delta. `repeats_request_id`: `x-request-id` becomes a part of the answer's id.
    `api` is what the request at hand speaks: it decides the shape of errors. `is_terse`: events of
    Responses without numbers and indexes, never `incomplete`; no pings. `ends_with_done`: a
    `[DONE]` behind the own end of Responses and Messages.
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
    paths: tuple[str, ...] = _CHAT_PATHS
    api: Api = "chat"
    is_terse: bool = False
    ends_with_done: bool = False

    def at(self, path: str) -> Persona:
        """Return the persona as it speaks at this path."""
        if path == RESPONSES_PATH:
            return replace(self, api="responses")
        return replace(self, api="messages") if path in _MESSAGES_PATHS else self


VLLM = Persona(
    name="vllm",
    metrics_prefix="vllm:",
    version_route=True,
    repeats_request_id=True,
    finish_event_is_empty=False,
    paths=(*_CHAT_PATHS, RESPONSES_PATH, *_MESSAGES_PATHS),
)
LLAMACPP = Persona(
    name="llamacpp",
    metrics_prefix="llamacpp:",
    health_body=b'{"status":"ok"}',
    role_content=None,
    knows_only_its_models=False,
    paths=(*_CHAT_PATHS, RESPONSES_PATH, *_MESSAGES_PATHS),
    is_terse=True,
)
OPENAI = Persona(
    name="openai",
    metrics_prefix="",
    paths=(*_CHAT_PATHS, RESPONSES_PATH),
    headers=(
        ("openai-processing-ms", "1"),
        ("openai-version", "2020-10-01"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-remaining-requests", "9999"),
        ("x-ratelimit-reset-requests", "6ms"),
    ),
)
ANTHROPIC = Persona(
    name="anthropic",
    metrics_prefix="",
    paths=_MESSAGES_PATHS,
    api="messages",
    headers=(
        ("request-id", "req_simulated"),
        ("anthropic-ratelimit-requests-remaining", "999"),
    ),
)
PERSONAS = (VLLM, LLAMACPP, OPENAI, ANTHROPIC)
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def anthropic_type(status: int) -> str:
    """Return the `type` that Anthropic gives to errors of this status."""
    default = "invalid_request_error" if status < 500 else "api_error"
    return _ANTHROPIC_TYPES.get(status, default)


def persona_named(name: str) -> Persona:
    """Return a persona.

    Raises:
        LookupError: no persona has this name.
    """
    known: dict[str, Persona] = {persona.name: persona for persona in PERSONAS}
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
    if persona.name == "anthropic":
        return anthropic_error(anthropic_type(status), message)
    if persona.name == "vllm":
        kind = kind or {404: "NotFoundError", 400: "BadRequestError"}.get(status, "InternalError")
        if persona.api == "messages":
            return anthropic_error(kind, message)
        error: dict[str, object] = {"message": message, "type": kind, "param": param}
        return _dump({"error": {**error, "code": status}})
    if persona.name == "llamacpp":
        names = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
        kind = kind or names.get(status, "unavailable_error" if status == 503 else "server_error")
        return _dump({"error": {"code": status, "message": message, "type": kind}})
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    return _dump({"error": {"message": message, "type": kind, "param": param, "code": code}})


def anthropic_error(kind: str, message: str) -> bytes:
    """Return an error body in Anthropic's shape."""
    return _dump({"type": "error", "error": {"type": kind, "message": message}})


def unknown_model(persona: Persona, model: str, models: tuple[str, ...]) -> bytes:
    """Return the body of the 404 for a model that is not served."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    if persona.name == "vllm":
        message = f"The model `{model}` does not exist. Valid aliases: {', '.join(models)}."
    if persona.name == "anthropic":
        message = f"model: {model}"
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
    if persona.name == "anthropic":
        return error_json(persona, 401, "invalid x-api-key")
    message = "Invalid API Key" if persona.name == "llamacpp" else "Incorrect API key provided."
    return error_json(persona, 401, message, code="invalid_api_key")


def loading(persona: Persona) -> bytes:
    """Return the body of the 503 while the model loads."""
    return error_json(persona, 503, "Loading model")


def _dump(data: object) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()
