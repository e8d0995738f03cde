"""Errors in all the shapes that are out there, and answers that take the place of a good one."""

from __future__ import annotations

import json

from shared.testing.faults import Fault
from shared.testing.personas import Persona, error_json
from shared.testing.steps import Cut, End, Head, Raw, Send, Steps

MESSAGE = "simulated failure"
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body>nginx at 10.1.2.3</body></html>\n"
_ENVELOPE = {"message": MESSAGE, "type": "server_error", "param": None, "code": "simulated"}


def error_event(shape: str, *, code: int = 500) -> bytes:
    """Return an error as an SSE event in one of the shapes that are out there.

    Args:
        shape: `openai`; `text` (`{"error": "…"}`); `vllm_old` (`{"object": "error"}`);
            `event_error` (OpenAI's under `event: error`); `message` (`event: error` without an
            `error` key).
        code: the `code` of vLLM's shape.

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
    }
    if shape not in shapes:
        raise ValueError(f"unknown event shape {shape!r}; known: {', '.join(shapes)}")
    prefix, data = shapes[shape]
    return prefix + b"data: " + json.dumps(data).encode() + b"\n\n"


def error_body(shape: str, code: int, persona: Persona) -> tuple[str, bytes]:
    """Return content type and body of an error answer.

    Raises:
        ValueError: an unknown shape.
    """
    bodies: dict[str, tuple[str, bytes]] = {
        "persona": ("application/json", error_json(persona, code, MESSAGE, kind="server_error")),
        "openai": ("application/json", json.dumps({"error": _ENVELOPE}).encode()),
        "string": ("application/json", json.dumps({"error": MESSAGE}).encode()),
        "detail": ("application/json", json.dumps({"detail": MESSAGE}).encode()),
        "text": ("text/plain", MESSAGE.encode()),
        "html": ("text/html", _HTML),
        "empty": ("text/plain", b""),
    }
    if shape not in bodies:
        raise ValueError(f"unknown body shape {shape!r}; known: {', '.join(bodies)}")
    return bodies[shape]


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
    return instead(200, *error_body(fault.shape or "openai", 200, persona))


def json_200(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Answer a plain completion, also to a request for a stream."""
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
