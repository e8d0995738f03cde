"""Errors in all the shapes that are out there, and answers that take the place of a good one."""

from __future__ import annotations

import json

from shared.testing.faults import Fault
from shared.testing.personas import Persona, anthropic_error, anthropic_type, error_json
from shared.testing.steps import Cut, End, Head, Raw, Send, Steps

MESSAGE = "simulated failure"
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx at 10.1.2.3</body></html>\n"
_REASON = {"code": "server_error", "message": MESSAGE, "param": None}
_ENVELOPE = {"message": MESSAGE, "type": "server_error", "param": None, "code": "simulated"}

_WHOLE: dict[str, object] = {
    "responses": {
        "id": "resp_sim",
        "object": "response",
        "created_at": 0,
        "model": "simulated",
        "status": "completed",
        "output": [],
    },
    "messages": {
        "id": "msg_sim",
        "type": "message",
        "role": "assistant",
        "model": "simulated",
        "content": [{"type": "text", "text": "simulated"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    },
}


def own_event_shape(persona: Persona) -> str:
    """Return the shape in which a persona reports an error in a stream of its API."""
    if persona.api == "responses" and not persona.is_terse:
        return "responses"
    if persona.api == "messages":
        return "bare" if persona.is_terse else "anthropic"
    return "openai"


def error_event(shape: str, *, code: int = 500, number: int = 0) -> bytes:
    """Return an error as an SSE event in one of the shapes that are out there.

    Args:
        shape: `openai`; `text` (`{"error": "…"}`); `vllm_old` (`{"object": "error"}`);
            `event_error` (OpenAI's under `event: error`); `message` (`event: error` without an
            `error` key); `responses` (Responses' own `error` event); `anthropic` (Messages' own);
            `anthropic_unnamed` (the same without `event:`); `bare` (llama.cpp's for Messages).
        code: the status that some shapes tell.
        number: the `sequence_number` in the shape of Responses.

    Raises:
        ValueError: an unknown shape.
    """
    vllm_old = {"object": "error", "message": MESSAGE, "type": "InternalServerError"}
    shapes: dict[str, tuple[bytes, object]] = {
        "openai": (b"", {"error": _ENVELOPE}),
        "text": (b"", {"error": MESSAGE}),
        "vllm_old": (b"", {**vllm_old, "param": None, "code": code}),
        "event_error": (b"event: error\n", {"error": _ENVELOPE}),
        "message": (b"event: error\n", {"message": MESSAGE}),
        "responses": (b"event: error\n", {"type": "error", "sequence_number": number, **_REASON}),
        "anthropic": (b"event: error\n", _anthropic(code)),
        "anthropic_unnamed": (b"", _anthropic(code)),
        "bare": (b"event: error\n", {"code": code, "message": MESSAGE, "type": "server_error"}),
    }
    if shape not in shapes:
        raise ValueError(f"unknown event shape {shape!r}; known: {', '.join(shapes)}")
    prefix, data = shapes[shape]
    return prefix + b"data: " + json.dumps(data).encode() + b"\n\n"


def failed_event(steps: Steps, number: int) -> bytes:
    """Return `response.failed` for the response that these steps begin."""
    first = next(step.data for step in steps if isinstance(step, Send))
    response = {**json.loads(first.partition(b"data: ")[2])["response"], "status": "failed"}
    response["error"] = {"code": "server_error", "message": MESSAGE}
    data = {"type": "response.failed", "sequence_number": number, "response": response}
    return b"event: response.failed\ndata: " + json.dumps(data).encode() + b"\n\n"


def error_body(shape: str, code: int, persona: Persona) -> tuple[str, bytes]:
    """Return content type and body of an error answer.

    Raises:
        ValueError: an unknown shape.
    """
    bodies: dict[str, tuple[str, bytes]] = {
        "persona": ("application/json", error_json(persona, code, MESSAGE, kind="server_error")),
        "openai": ("application/json", json.dumps({"error": _ENVELOPE}).encode()),
        "anthropic": ("application/json", json.dumps(_anthropic(code)).encode()),
        "string": ("application/json", json.dumps({"error": MESSAGE}).encode()),
        "detail": ("application/json", json.dumps({"detail": MESSAGE}).encode()),
        "text": ("text/plain", MESSAGE.encode()),
        "html": ("text/html", _HTML),
        "empty": ("text/plain", b""),
    }
    if shape not in bodies:
        raise ValueError(f"unknown body shape {shape!r}; known: {', '.join(bodies)}")
    return bodies[shape]


def _anthropic(code: int) -> object:
    return json.loads(anthropic_error(anthropic_type(code), MESSAGE))


def instead(status: int, kind: str, body: bytes, *extra: tuple[str, str]) -> Steps:
    """Return the steps of a whole answer of content type `kind`."""
    head = Head(status, (("content-type", kind), *extra), len(body))
    return (head, Send(body), End())


def status(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Answer `code` with an error body of `shape` (the persona's own)."""
    kind, body = error_body(fault.shape or "persona", fault.code, persona)
    extra = (("retry-after", fault.retry_after),) if fault.retry_after else ()
    return instead(fault.code, kind, body, *extra)


def html_502(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Answer as a proxy does whose upstream is down."""
    return instead(502, "text/html", _HTML)


def redirect(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Answer 302 to `location`."""
    code = fault.code if 300 <= fault.code < 400 else 302
    return instead(code, "text/plain", b"", ("location", fault.location))


def error_200(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Answer 200 with an error body of `shape`."""
    own = "anthropic" if persona.api == "messages" else "openai"
    return instead(200, *error_body(fault.shape or own, 500, persona))


def json_200(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Answer plain JSON, also to a request for a stream."""
    if persona.api != "chat":
        return instead(200, "application/json", json.dumps(_WHOLE[persona.api]).encode())
    message = {"role": "assistant", "content": "simulated"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "chatcmpl-sim", "object": "chat.completion", "created": 0, "choices": [choice]}
    return instead(200, "application/json", json.dumps(body).encode())


def empty_200(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Answer 200 with an empty body."""
    return instead(200, "application/json", b"")


def garbage(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Answer something that is no HTTP."""
    return (Raw(b"\x16\x03\x01 this is no HTTP\r\n\r\n"), Cut())
