"""Whether an answer is one that an SDK can live with: its head, its body, its stream's end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tests.soak.accounts import Account, Ending
from tests.soak.wire import Head

_NEVER = ("server", "set-cookie", "x-powered-by", "alt-svc", "content-encoding")
_RESPONSES_END = {"response.completed", "response.incomplete", "response.failed", "error"}
_ENVELOPE = {"message", "type", "param", "code"}
_RESULT = {
    "chat": "choices",
    "completions": "choices",
    "embeddings": "data",
    "responses": "output",
    "messages": "content",
    "count_tokens": "input_tokens",
}


class Wrong(Exception):
    """An answer that must not be; the text says what is wrong with it."""


def judge(account: Account, head: Head, body: bytes, *, is_stream: bool, has_usage: bool) -> None:
    """Note in the account how an answer that came whole ended.

    Args:
        account: of the request.
        head: the answer's.
        body: all of it.
        is_stream: whether a stream was asked for.
        has_usage: whether that stream was asked to tell its usage.

    Raises:
        Wrong: it is none that a client may get.
    """
    account.status = head.status
    _judge_head(account, head)
    kind = head.headers.get("content-type", "")
    if head.status != 200:
        account.code = _error_code(account, _decoded(body))
        account.ending = Ending.ERROR
        _judge_error_head(head)
    elif is_stream:
        if not kind.startswith("text/event-stream"):
            raise Wrong(f"a stream was asked for, {kind} came")
        _judge_stream(account, body, has_usage=has_usage)
    else:
        if _RESULT[account.api] not in _decoded(body):
            raise Wrong("200 without a result")
        account.ending = Ending.WHOLE


def _judge_head(account: Account, head: Head) -> None:
    if account.is_http and head.headers.get("x-request-id") != account.request_id:
        raise Wrong(f"x-request-id came back as {head.headers.get('x-request-id')}")
    present = [name for name in _NEVER if name in head.headers]
    if present:
        raise Wrong(f"headers that are not for clients: {present}")
    attempts = head.headers.get("x-iir-attempts")
    account.attempts = None if attempts is None else int(attempts)


def _judge_error_head(head: Head) -> None:
    if head.headers.get("x-iir-error-origin") not in {"router", "upstream", "agent", "client"}:
        raise Wrong("an error without x-iir-error-origin")
    if head.status == 429 and "retry-after" not in head.headers and _is_ours(head):
        raise Wrong("429 without retry-after")


def _is_ours(head: Head) -> bool:
    return head.headers["x-iir-error-origin"] == "router"


def _error_code(account: Account, body: dict[str, Any]) -> str:
    error = body.get("error")
    if not isinstance(error, dict):
        raise Wrong("an error without an envelope")
    if account.api in {"messages", "count_tokens"} and account.is_http:
        if body.get("type") != "error" or not {"type", "message"} <= error.keys():
            raise Wrong("an error that is not in the shape of Messages")
    elif not error.keys() >= _ENVELOPE:
        raise Wrong(f"an error's envelope has only {sorted(error)}")
    return str(error.get("code"))


def _judge_stream(account: Account, body: bytes, *, has_usage: bool) -> None:
    if not body.endswith((b"\n\n", b"\r\n\r\n")):
        raise Wrong("the stream's last event is not whole")
    events = [data for data in _events(body) if data]
    if not events:
        raise Wrong("a stream without events")
    ends = [_end_of(account, data) for data in events]
    if ends[-1] is None:
        raise Wrong(f"the stream ended without its end: {events[-1][-80:]!r}")
    if any(ends[:-1]):
        raise Wrong(f"{len(events) - _first(ends) - 1} events after the stream's end")
    account.ending = ends[-1]
    if account.api in {"chat", "completions"} and ends[-1] is Ending.WHOLE:
        _judge_usage(events[:-1], has_usage=has_usage)


def _first(ends: Sequence[Ending | None]) -> int:
    return next(place for place, end in enumerate(ends) if end is not None)


def _events(body: bytes) -> Iterator[bytes]:
    """Yield each event's data; empty for comments."""
    text = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for event in text.split(b"\n\n"):
        lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
        yield b"\n".join(line.removeprefix(b" ") for line in lines)


def _end_of(account: Account, data: bytes) -> Ending | None:
    """Return which end an event is; None if others follow it."""
    if data == b"[DONE]":
        return Ending.WHOLE
    event = _decoded(data)
    kind = event.get("type")
    if account.api == "responses" and kind in _RESPONSES_END:
        account.has_own_end = kind in {"error", "response.failed"}
        return Ending.BROKEN_OFF if account.has_own_end else Ending.WHOLE
    if account.api == "messages" and kind == "message_stop":
        return Ending.WHOLE
    return Ending.BROKEN_OFF if event.get("error") else None


def _judge_usage(events: Sequence[bytes], *, has_usage: bool) -> None:
    count = sum(_decoded(data).get("choices") == [] for data in events)
    if count != has_usage:
        raise Wrong(f"{count} chunks with usage, asked for: {has_usage}")


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        data.decode()
        found: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Wrong(f"no JSON object: {data[:80]!r}") from None
    return found
