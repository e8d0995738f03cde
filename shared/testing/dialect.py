"""Answers in OpenAI's dialect, as vLLM, llama.cpp and OpenAI write them.

Source of the shapes: recorded answers of the engines, and OpenAI's specification 2.3.0.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from shared.testing.asks import (
    Ask,
    AskError,
    Body,
    count_tokens,
    read_chat,
    read_completion,
    read_inputs,
)
from shared.testing.personas import FINGERPRINT, OWNER, Persona
from shared.testing.steps import Answer, Send
from shared.testing.text import Generated, ToolCall, call_tool, embed, generate

STREAM_HEADERS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
)
JSON_HEADERS = (("content-type", "application/json"),)
DONE = Send(b"data: [DONE]\n\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """What an answer needs besides the request."""

    persona: Persona
    model: str
    id: str
    created: int
    seed: int = 0
    tokens: int | None = None
    context_tokens: int = 8192
    dimensions: int = 8


def answer(path: str, body: Body, speaker: Speaker) -> Answer:
    """Answer one inference request.

    Raises:
        AskError: the request is wrong.
    """
    if path == "/v1/embeddings":
        return _embeddings(body, speaker)
    if path == "/v1/completions":
        ask = read_completion(body)
        return _text_answer(ask, speaker, _CompletionShape())
    ask = read_chat(body)
    return _text_answer(ask, speaker, _ChatShape(speaker.persona))


def model_json(model: str, created: int, context_tokens: int) -> dict[str, object]:
    """Return a model as `/v1/models` lists it."""
    facts = {"id": model, "object": "model", "created": created, "owned_by": OWNER}
    return {**facts, "root": model, "parent": None, "max_model_len": context_tokens}


def dump(data: object) -> bytes:
    """Return compact JSON."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


class _ChatShape:
    prefix = "chatcmpl-"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def __init__(self, persona: Persona) -> None:
        self._persona = persona

    def choice(self, generated: Generated) -> dict[str, object]:
        message: dict[str, object] = {"role": "assistant", "content": generated.text}
        message |= {"refusal": None, "annotations": []}
        if generated.tool_call is not None:
            call = generated.tool_call
            message |= {"content": None, "tool_calls": [_call_json(call, call.arguments)]}
        return {"message": message, "logprobs": None}

    def first(self, generated: Generated) -> list[dict[str, object]]:
        content = None if generated.tool_call else self._persona.role_content
        events: list[dict[str, object]] = [{"delta": {"role": "assistant", "content": content}}]
        if generated.tool_call is not None:
            call = {"index": 0, **_call_json(generated.tool_call, "")}
            events.append({"delta": {"tool_calls": [call]}})
        return events

    def token(self, generated: Generated, piece: str) -> dict[str, object]:
        if generated.tool_call is None:
            return {"delta": {"content": piece}}
        call = {"index": 0, "function": {"arguments": piece}}
        return {"delta": {"tool_calls": [call]}}

    def last(self) -> dict[str, object]:
        return {"delta": {}}


class _CompletionShape:
    prefix = "cmpl-"
    whole = "text_completion"
    chunk = "text_completion"

    def choice(self, generated: Generated) -> dict[str, object]:
        return {"text": generated.text, "logprobs": None}

    def first(self, generated: Generated) -> list[dict[str, object]]:
        return []

    def token(self, generated: Generated, piece: str) -> dict[str, object]:
        return {"text": piece}

    def last(self) -> dict[str, object]:
        return {"text": ""}


_Shape = _ChatShape | _CompletionShape


def _call_json(call: ToolCall, arguments: str) -> dict[str, object]:
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _text_answer(ask: Ask, speaker: Speaker, shape: _Shape) -> Answer:
    check_context(ask, speaker)
    choices = [
        generate_choice(ask, speaker, prompt, number)
        for prompt in ask.prompts
        for number in range(ask.choices)
    ]
    usage = _usage(ask.prompt_tokens, sum(len(choice.pieces) for choice in choices))
    if ask.is_stream:
        parts = _stream(ask, speaker, shape, choices, usage)
    else:
        parts = (_whole(speaker, shape, choices, usage),)
    return Answer(
        headers=STREAM_HEADERS if ask.is_stream else JSON_HEADERS,
        parts=parts,
        is_stream=ask.is_stream,
        prompt_tokens=ask.prompt_tokens,
        finish_reason=choices[0].finish_reason,
    )


def check_context(ask: Ask, speaker: Speaker) -> None:
    """Refuse what the model could not hold.

    Raises:
        AskError: prompt and answer together are too long.
    """
    wanted = ask.prompt_tokens + (ask.max_tokens or 0)
    if wanted > speaker.context_tokens:
        limit = f"This model's maximum context length is {speaker.context_tokens} tokens."
        raise AskError(f"{limit} However, you requested {wanted} tokens.", "max_tokens")


def generate_choice(ask: Ask, speaker: Speaker, prompt: str, number: int = 0) -> Generated:
    """Return the answer to one prompt; `number` tells choices for the same prompt apart."""
    seed = speaker.seed + ask.seed + number
    if ask.tool is not None:
        return call_tool(ask.tool, seed=seed, prompt=prompt)
    return generate(
        prompt, seed=seed, tokens=speaker.tokens, max_tokens=ask.max_tokens, stop=ask.stop
    )


def _whole(
    speaker: Speaker, shape: _Shape, choices: list[Generated], usage: dict[str, object]
) -> Send:
    listed = [
        {"index": index, **shape.choice(choice), "finish_reason": choice.finish_reason}
        for index, choice in enumerate(choices)
    ]
    body = {**_opening(speaker, shape, shape.whole), "choices": listed, "usage": usage}
    tokens = sum(len(choice.pieces) for choice in choices)
    return Send(dump(body), tokens)


def _stream(
    ask: Ask, speaker: Speaker, shape: _Shape, choices: list[Generated], usage: dict[str, object]
) -> tuple[Send, ...]:
    opening = _opening(speaker, shape, shape.chunk)
    tracks = [
        [
            _event(opening, [{"index": index, "logprobs": None, **choice}], tokens)
            for choice, tokens in _track(speaker.persona, shape, generated)
        ]
        for index, generated in enumerate(choices)
    ]
    events = [event for row in zip_longest(*tracks) for event in row if event is not None]
    if ask.wants_usage:
        events.append(_event({**opening, "usage": usage}, [], 0))
    return (*events, DONE)


def _track(
    persona: Persona, shape: _Shape, generated: Generated
) -> Iterator[tuple[dict[str, object], int]]:
    """Yield the events of one choice, each with its number of tokens."""
    for event in shape.first(generated):
        yield {**event, "finish_reason": None}, 0
    reason = generated.finish_reason
    shares_last = bool(generated.pieces) and not persona.finish_event_is_empty
    for index, piece in enumerate(generated.pieces, start=1):
        is_last = shares_last and index == len(generated.pieces)
        event = shape.token(generated, piece)
        yield {**event, "finish_reason": reason if is_last else None}, 1
    if not shares_last:
        yield {**shape.last(), "finish_reason": reason}, 0


def _opening(speaker: Speaker, shape: _Shape, kind: str) -> dict[str, object]:
    return {
        "id": shape.prefix + speaker.id,
        "object": kind,
        "created": speaker.created,
        "model": speaker.model,
        "system_fingerprint": FINGERPRINT,
    }


def _event(opening: dict[str, object], choices: list[dict[str, object]], tokens: int) -> Send:
    return Send(b"data: " + dump({**opening, "choices": choices}) + b"\n\n", tokens)


def _usage(prompt: int, completion: int) -> dict[str, object]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _embeddings(body: Body, speaker: Speaker) -> Answer:
    inputs = read_inputs(body, "input")
    wanted = body.get("dimensions")
    size = wanted if isinstance(wanted, int) and 0 < wanted <= 4096 else speaker.dimensions
    vectors = [embed(item, seed=speaker.seed, dimensions=size) for item in inputs]
    is_base64 = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": _base64(v) if is_base64 else v}
        for i, v in enumerate(vectors)
    ]
    tokens = sum(count_tokens(item) for item in inputs)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    listed = {"object": "list", "data": data, "model": speaker.model, "usage": usage}
    return Answer(
        headers=JSON_HEADERS,
        parts=(Send(dump(listed)),),
        prompt_tokens=tokens,
        finish_reason="stop",
    )


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
