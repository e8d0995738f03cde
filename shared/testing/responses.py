"""Answers in the dialect of OpenAI's Responses, as OpenAI, vLLM and llama.cpp write them.

Source of the shapes: OpenAI's specification 2.3.0, recorded answers of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.testing.asks import Ask, Body, read_response
from shared.testing.dialect import (
    DONE,
    JSON_HEADERS,
    STREAM_HEADERS,
    Speaker,
    check_context,
    dump,
    generate_choice,
)
from shared.testing.steps import Answer, Send
from shared.testing.text import Generated

_Json = dict[str, object]
_PLACES = frozenset({"sequence_number", "output_index", "content_index", "logprobs"})


def answer_response(body: Body, speaker: Speaker) -> Answer:
    """Answer `POST /v1/responses`.

    Raises:
        AskError: the request is wrong.
    """
    ask = read_response(body)
    check_context(ask, speaker)
    generated = generate_choice(ask, speaker, ask.prompts[0])
    response = _Response(ask, speaker, generated, body)
    if ask.is_stream:
        parts = tuple(response.events())
    else:
        parts = (Send(dump(response.finished()), len(generated.pieces)),)
    return Answer(
        headers=STREAM_HEADERS if ask.is_stream else JSON_HEADERS,
        parts=parts,
        is_stream=ask.is_stream,
        prompt_tokens=ask.prompt_tokens,
        finish_reason=generated.finish_reason,
    )


def event(kind: str, data: _Json, tokens: int = 0) -> Send:
    """Return a named event whose data repeats the name as `type`."""
    return Send(b"event: %b\ndata: %b\n\n" % (kind.encode(), dump({"type": kind, **data})), tokens)


class _Response:
    """One response: its object at each stage, and its events."""

    def __init__(self, ask: Ask, speaker: Speaker, generated: Generated, body: Body) -> None:
        self._ask = ask
        self._speaker = speaker
        self._generated = generated
        self._body = body
        self._item_id = f"msg_{speaker.id}"
        is_cut = generated.finish_reason == "length" and not speaker.persona.is_terse
        self._status = "incomplete" if is_cut else "completed"

    def finished(self) -> _Json:
        """Return the whole response."""
        tokens = len(self._generated.pieces)
        reason = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return {
            **self._begun(self._status),
            "incomplete_details": reason,
            "output": [self._item(self._status, [self._part(self._generated.text)])],
            "usage": {
                "input_tokens": self._ask.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self._ask.prompt_tokens + tokens,
            },
        }

    def events(self) -> Iterator[Send]:
        """Yield the stream, numbered."""
        for number, (kind, data, tokens) in enumerate(self._numberless()):
            numbered = {"sequence_number": number, **data}
            if self._speaker.persona.is_terse:
                numbered = {key: numbered[key] for key in numbered if key not in _PLACES}
            yield event(kind, numbered, tokens)
        if self._speaker.persona.ends_with_done:
            yield DONE

    def _numberless(self) -> Iterator[tuple[str, _Json, int]]:
        begun = self._begun("in_progress")
        text, whole = self._generated.text, self._part(self._generated.text)
        item = {"output_index": 0}
        part = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        yield "response.created", {"response": begun}, 0
        yield "response.in_progress", {"response": begun}, 0
        yield "response.output_item.added", {**item, "item": self._item("in_progress", [])}, 0
        yield "response.content_part.added", {**part, "part": self._part("")}, 0
        for piece in self._generated.pieces:
            yield "response.output_text.delta", {**part, "delta": piece, "logprobs": []}, 1
        yield "response.output_text.done", {**part, "text": text, "logprobs": []}, 0
        yield "response.content_part.done", {**part, "part": whole}, 0
        done = {**item, "item": self._item(self._status, [whole])}
        yield "response.output_item.done", done, 0
        yield f"response.{self._status}", {"response": self.finished()}, 0

    def _begun(self, status: str) -> _Json:
        return {
            "id": f"resp_{self._speaker.id}",
            "object": "response",
            "created_at": self._speaker.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": self._body.get("instructions"),
            "max_output_tokens": self._ask.max_tokens,
            "model": self._speaker.model,
            "output": [],
            "parallel_tool_calls": True,
            "previous_response_id": self._body.get("previous_response_id"),
            "metadata": self._body.get("metadata") or {},
            "temperature": self._body.get("temperature", 1.0),
            "top_p": self._body.get("top_p", 1.0),
            "tool_choice": "auto",
            "tools": [],
            "usage": None,
        }

    def _item(self, status: str, content: list[_Json]) -> _Json:
        item: _Json = {"id": self._item_id, "type": "message", "status": status}
        return {**item, "role": "assistant", "content": content}

    def _part(self, text: str) -> _Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
