"""Words as tokens: deterministic answers, vectors and tool arguments made of a prompt and a seed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PIECE = re.compile(r"\s*\S+")
_FILLER = ("and", "so", "it", "goes", "on", "word", "by", "word", "to", "the", "asked", "length")
_EXAMPLES: Mapping[str, object] = {
    "string": "simulated",
    "integer": 1,
    "number": 1.5,
    "boolean": True,
    "array": [],
    "object": {},
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A scripted call of a function; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Generated:
    """One choice: its tokens, why it ended, and the tool call that takes the text's place."""

    pieces: tuple[str, ...]
    finish_reason: str
    tool_call: ToolCall | None = None

    @property
    def text(self) -> str:
        """The pieces joined."""
        return "".join(self.pieces)


def pieces_of(text: str) -> list[str]:
    """Split a text into tokens: words with the white space before them."""
    return _PIECE.findall(text)


def digest(*parts: object) -> bytes:
    """Return 32 bytes that depend on nothing but the arguments."""
    data = json.dumps([str(part) for part in parts], ensure_ascii=True)
    return hashlib.sha256(data.encode()).digest()


def generate(
    prompt: str,
    *,
    seed: int,
    tokens: int | None = None,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
) -> Generated:
    """Return `Simulated answer HASH: PROMPT`, which a seed changes in HASH only.

    Args:
        prompt: what to echo.
        seed: changes the answer.
        tokens: make the answer exactly this long by cutting or by going on.
        max_tokens: end earlier, with the finish reason `length`.
        stop: end before the first of these.
    """
    mark = digest(seed, prompt).hex()[:6]
    pieces = pieces_of(f"Simulated answer {mark}: {prompt}")
    if tokens is not None:
        filler = (" " + _FILLER[i % len(_FILLER)] for i in range(tokens - len(pieces)))
        pieces = [*pieces, *filler][:tokens]
    text = "".join(pieces)
    ends = [text.find(mark_) for mark_ in stop if mark_ and mark_ in text]
    if ends:
        pieces = pieces_of(text[: min(ends)])
    if max_tokens is not None and len(pieces) > max_tokens:
        return Generated(tuple(pieces[:max_tokens]), "length")
    return Generated(tuple(pieces), "stop")


def call_tool(function: Mapping[str, object], *, seed: int, prompt: str) -> Generated:
    """Return a call with an example value for each required argument of the function."""
    name = str(function.get("name", ""))
    schema = function.get("parameters")
    arguments = json.dumps(_example_arguments(schema if isinstance(schema, dict) else {}))
    fragments = tuple(arguments[at : at + 8] for at in range(0, len(arguments), 8))
    call = ToolCall(f"call_{digest(seed, name, prompt).hex()[:24]}", name, arguments)
    return Generated(fragments, "tool_calls", call)


def embed(text: object, *, seed: int, dimensions: int) -> list[float]:
    """Return a vector of length 1: equal inputs have equal vectors."""
    raw: list[int] = []
    while len(raw) < dimensions:
        raw += digest(seed, text, len(raw))
    centred = [value - 127.5 for value in raw[:dimensions]]
    norm = math.sqrt(sum(value * value for value in centred))
    return [value / norm for value in centred]


def _example_arguments(schema: Mapping[str, object]) -> dict[str, object]:
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    required = schema.get("required")
    names = required if isinstance(required, list) else list(known)
    return {str(name): _example(known.get(name)) for name in names}


def _example(schema: object) -> object:
    if not isinstance(schema, dict):
        return _EXAMPLES["string"]
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        return choices[0]
    return _EXAMPLES.get(str(schema.get("type")), _EXAMPLES["string"])
