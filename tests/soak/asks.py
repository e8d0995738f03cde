"""Requests by chance: of all APIs, of all lengths, and broken ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.soak.plan import AGENT_MODEL, KEYS

_WORDS = ("each", "request", "that", "the", "router", "takes", "ends", "in", "its", "ledger")
_PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
}
_SHARES = {
    "chat": 10,
    "completions": 2,
    "embeddings": 2,
    "responses": 3,
    "messages": 3,
    "count_tokens": 1,
}
_ON_AGENTS = ("chat", "completions", "embeddings")
_MODELS = {"three": 5, "two": 3, "busy": 2, "long": 1, AGENT_MODEL: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to be sent."""

    api: str
    path: str
    model: str
    key: str
    body: bytes
    is_stream: bool
    has_usage: bool


def make_ask(rng: Random, keys: dict[str, str], *, model: str | None = None) -> Ask:
    """Return a good request, for this model or any."""
    model = model or _pick(rng, _MODELS)
    api = _pick(rng, {a: _SHARES[a] for a in _ON_AGENTS} if model == AGENT_MODEL else _SHARES)
    is_stream = api not in {"embeddings", "count_tokens"} and rng.random() < 0.6
    has_usage = is_stream and api in {"chat", "completions"} and rng.random() < 0.5
    body = _body(api, model, _text(rng, model))
    if is_stream:
        body["stream"] = True
    if has_usage:
        body["stream_options"] = {"include_usage": True}
    return Ask(
        api=api,
        path=_PATHS[api].removeprefix("/v1" if rng.random() < 0.1 else ""),
        model=model,
        key=keys[KEYS[0] if rng.random() < 0.7 else KEYS[1]],
        body=json.dumps(body).encode(),
        is_stream=is_stream,
        has_usage=has_usage,
    )


def _text(rng: Random, model: str) -> str:
    length = rng.randint(800, 2500) if model == "long" else rng.randint(6, 30)
    text = " ".join(rng.choices(_WORDS, k=length))
    return text + " größer" if rng.random() < 0.2 else text


def _body(api: str, model: str, text: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    fields: dict[str, dict[str, Any]] = {
        "chat": {"messages": messages},
        "completions": {"prompt": text},
        "embeddings": {"input": [text[:200], "another"]},
        "responses": {"input": text},
        "messages": {"messages": messages, "max_tokens": 4000},
        "count_tokens": {"messages": messages},
    }
    return {"model": model, **fields[api]}


def _pick(rng: Random, shares: dict[str, int]) -> str:
    return rng.choices([*shares], [*shares.values()])[0]


_HUGE = 1_500_000  # over the limit of the soak's router
_NOT_HTTP = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: ten\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadAsk:
    """A request that has to be refused with this status; `raw` stands for all of it."""

    status: int
    body: bytes = b""
    method: str = "POST"
    headers: dict[str, str] | None = None
    raw: bytes = b""


BAD = {
    "no JSON": BadAsk(status=400, body=b'{"model": "three", '),
    "no object": BadAsk(status=400, body=b"[1, 2]"),
    "bad UTF-8": BadAsk(status=400, body=b'{"model": "three", "messages": "\xff"}'),
    "nested": BadAsk(status=400, body=b'{"model": "three", "messages": ' + b"[" * 50_000),
    "no model": BadAsk(status=400, body=b'{"messages": []}'),
    "unknown model": BadAsk(status=404, body=b'{"model": "nobody-has-it", "messages": []}'),
    "no messages": BadAsk(status=400, body=b'{"model": "busy"}'),
    "wrong method": BadAsk(status=405, method="GET"),
    "compressed": BadAsk(status=415, body=b"x", headers={"content_encoding": "gzip"}),
    "wrong key": BadAsk(status=401, body=b"{}", headers={"authorization": "Bearer sk-iir-no"}),
    "oversize": BadAsk(status=413, body=b" " * _HUGE),
    "oversize in chunks": BadAsk(
        status=413,
        body=(b"10000\r\n" + b" " * 65536 + b"\r\n") * (_HUGE // 65536) + b"0\r\n\r\n",
        headers={"content_length": "", "transfer_encoding": "chunked"},
    ),
    "no HTTP": BadAsk(status=400, raw=_NOT_HTTP),
}
