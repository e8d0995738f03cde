"""Answers in the dialect of Anthropic's Messages, as Anthropic, vLLM and llama.cpp write them.

Source of the shapes: Anthropic's documentation of streams, recorded answers of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone

from shared.testing.asks import Ask, Body, read_message
from shared.testing.dialect import (
    DONE,
    JSON_HEADERS,
    STREAM_HEADERS,
    Speaker,
    check_context,
    dump,
    generate_choice,
)
from shared.testing.responses import event
from shared.testing.steps import Answer, Send
from shared.testing.text import Generated

_Json = dict[str, object]


def answer_message(body: Body, speaker: Speaker) -> Answer:
    """Answer `POST /v1/messages`.

    Raises:
        AskError: the request is wrong.
    """
    ask = read_message(body)
    check_context(ask, speaker)
    generated = generate_choice(ask, speaker, ask.prompts[0])
    found = _Message(ask, speaker, generated)
    if ask.is_stream:
        parts = tuple(found.events())
    else:
        parts = (Send(dump(found.finished()), len(generated.pieces)),)
    return Answer(
        headers=STREAM_HEADERS if ask.is_stream else JSON_HEADERS,
        parts=parts,
        is_stream=ask.is_stream,
        prompt_tokens=ask.prompt_tokens,
        finish_reason=generated.finish_reason,
    )


def answer_count(body: Body) -> Answer:
    """Answer `POST /v1/messages/count_tokens`.

    Raises:
        AskError: the request is wrong.
    """
    ask = read_message(body, needs_limit=False)
    return Answer(headers=JSON_HEADERS, parts=(Send(dump({"input_tokens": ask.prompt_tokens})),))


def anthropic_model_json(model: str, created: int) -> dict[str, object]:
    """Return a model as Anthropic's `/v1/models` lists it."""
    made = datetime.fromtimestamp(created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": model, "display_name": model, "created_at": made}


class _Message:
    """One message, whole and as events."""

    def __init__(self, ask: Ask, speaker: Speaker, generated: Generated) -> None:
        self._ask = ask
        self._speaker = speaker
        self._generated = generated
        stop = _hit(ask, speaker, generated)
        reason = "max_tokens" if generated.finish_reason == "length" else "end_turn"
        self._end: _Json = {
            "stop_reason": "stop_sequence" if stop else reason,
            "stop_sequence": stop,
        }

    def finished(self) -> _Json:
        """Return the whole message."""
        content = [{"type": "text", "text": self._generated.text}]
        usage = self._usage(len(self._generated.pieces))
        return {**self._begun(), "content": content, **self._end, "usage": usage}

    def events(self) -> Iterator[Send]:
        """Yield the stream; its first event counts one token, as Anthropic's does."""
        text = {"type": "text", "text": ""}
        yield event("message_start", {"message": {**self._begun(), "usage": self._usage(1)}})
        yield event("content_block_start", {"index": 0, "content_block": text})
        if not self._speaker.persona.is_terse:
            yield event("ping", {})
        for piece in self._generated.pieces:
            delta = {"type": "text_delta", "text": piece}
            yield event("content_block_delta", {"index": 0, "delta": delta}, 1)
        yield event("content_block_stop", {"index": 0})
        usage = {"output_tokens": len(self._generated.pieces)}
        yield event("message_delta", {"delta": self._end, "usage": usage})
        yield event("message_stop", {})
        if self._speaker.persona.ends_with_done:
            yield DONE

    def _begun(self) -> _Json:
        return {
            "id": f"msg_{self._speaker.id}",
            "type": "message",
            "role": "assistant",
            "model": self._speaker.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _usage(self, output_tokens: int) -> _Json:
        cached = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        return {
            "input_tokens": self._ask.prompt_tokens,
            **cached,
            "output_tokens": output_tokens,
        }


def _hit(ask: Ask, speaker: Speaker, generated: Generated) -> str | None:
    """Return the stop sequence that ended the text."""
    if generated.finish_reason != "stop":
        return None
    text = generate_choice(replace(ask, stop=()), speaker, ask.prompts[0]).text
    found = [mark for mark in ask.stop if mark and mark in text]
    return min(found, key=text.find) if found else None
