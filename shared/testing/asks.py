"""The body of an inference request, checked as an engine checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shared.testing.text import pieces_of

Body = Mapping[str, object]
MOST_CHOICES = 128


class AskError(ValueError):
    """The request is wrong: 400. `param` names the field."""

    def __init__(self, message: str, param: str | None = None) -> None:
        """Hold the message and the field."""
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a chat or completion request wants; `prompts` holds one text to echo per prompt."""

    prompts: tuple[str, ...]
    prompt_tokens: int
    max_tokens: int | None
    choices: int
    stop: tuple[str, ...]
    seed: int
    is_stream: bool
    wants_usage: bool
    tool: Mapping[str, object] | None = None


def read_chat(body: Body) -> Ask:
    """Read a chat request.

    Raises:
        AskError: `messages` or an option is not what it should be.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise AskError("1 validation error: messages: Field required", "messages")
    if not all(isinstance(message, dict) and "role" in message for message in messages):
        raise AskError("1 validation error: each message needs a role", "messages")
    texts = [_content_text(message.get("content")) for message in messages]
    asked = [t for t, m in zip(texts, messages, strict=True) if m["role"] == "user"]
    prompt = asked[-1] if asked else texts[-1]
    tokens = sum(len(pieces_of(text)) for text in texts)
    return _read(body, (prompt,), tokens, tool=_chosen_tool(body))


def read_completion(body: Body) -> Ask:
    """Read a completion request; `prompt` is text, token ids, or a list of either.

    Raises:
        AskError: `prompt` or an option is not what it should be.
    """
    prompts = read_inputs(body, "prompt")
    tokens = sum(count_tokens(prompt) for prompt in prompts)
    texts = tuple(p if isinstance(p, str) else " ".join(map(str, p)) for p in prompts)
    return _read(body, texts, tokens)


def read_response(body: Body) -> Ask:
    """Read a request for a response; `input` is text or a list of items.

    Raises:
        AskError: `input` or an option is not what it should be.
    """
    items = body.get("input")
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    if not isinstance(items, list) or not items:
        raise AskError("1 validation error: input: Field required", "input")
    if not all(isinstance(item, dict) for item in items):
        raise AskError("1 validation error: input: each item needs to be an object", "input")
    texts = [_content_text(item.get("content", item.get("output"))) for item in items]
    asked = [t for t, item in zip(texts, items, strict=True) if item.get("role") == "user"]
    tokens = sum(len(pieces_of(text)) for text in [_content_text(body.get("instructions")), *texts])
    limit = _positive(body, "max_output_tokens", None)
    return _read(_options(body, limit, None), ((asked or texts)[-1],), tokens)


def read_message(body: Body, *, needs_limit: bool = True) -> Ask:
    """Read a request for a message, or, with `needs_limit=False`, one to count its tokens.

    Raises:
        AskError: `messages`, `max_tokens` or an option is not what it should be.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise AskError("messages: Field required", "messages")
    if not all(
        isinstance(message, dict) and message.get("role") in {"user", "assistant"}
        for message in messages
    ):
        raise AskError("messages: each needs the role user or assistant", "messages")
    limit = _positive(body, "max_tokens", None)
    if limit is None and needs_limit:
        raise AskError("max_tokens: Field required", "max_tokens")
    texts = [_content_text(message.get("content")) for message in messages]
    asked = [t for t, m in zip(texts, messages, strict=True) if m["role"] == "user"]
    tokens = sum(len(pieces_of(text)) for text in [_content_text(body.get("system")), *texts])
    options = _options(body, limit, body.get("stop_sequences"))
    return _read(options, ((asked or texts)[-1],), tokens)


def read_inputs(body: Body, key: str) -> list[str | list[int]]:
    """Return the texts or token lists under `key`.

    Raises:
        AskError: it is neither.
    """
    value = body.get(key)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise AskError(f"1 validation error: {key}: Field required", key)
    if all(_is_int(item) for item in value):
        return [value]
    if all(isinstance(item, str) or _is_token_list(item) for item in value):
        return value
    raise AskError(f"1 validation error: {key}: Input should be text or token ids", key)


def count_tokens(value: str | list[int]) -> int:
    """Return how many tokens an input has."""
    return len(pieces_of(value)) if isinstance(value, str) else len(value)


def _read(
    body: Body, prompts: tuple[str, ...], tokens: int, tool: Mapping[str, object] | None = None
) -> Ask:
    temperature = body.get("temperature")
    if isinstance(temperature, (int, float)) and temperature < 0:
        raise AskError(f"temperature must be non-negative, got {temperature}.", "temperature")
    options = body.get("stream_options")
    stop = body.get("stop")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    return Ask(
        prompts=prompts,
        prompt_tokens=tokens,
        max_tokens=_positive(body, limit, None),
        choices=min(_positive(body, "n", 1) or 1, MOST_CHOICES),
        stop=(stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else (),
        seed=_seed(body),
        is_stream=body.get("stream") is True,
        wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
        tool=tool,
    )


def _options(body: Body, limit: int | None, stop: object) -> Body:
    """Return the options of another API under the names of chat."""
    shared = {key: body[key] for key in ("stream", "seed", "temperature") if key in body}
    return {**shared, "max_tokens": limit, "stop": stop}


def _seed(body: Body) -> int:
    seed = body.get("seed")
    return seed if isinstance(seed, int) else 0


def _positive(body: Body, key: str, default: int | None) -> int | None:
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise AskError(f"{key} must be at least 1, got {value}.", key)
    return value


def _content_text(content: object) -> str:
    if isinstance(content, list):
        parts = [part.get("text", "") for part in content if isinstance(part, dict)]
        return " ".join(str(part) for part in parts)
    return content if isinstance(content, str) else ""


def _chosen_tool(body: Body) -> Mapping[str, object] | None:
    tools = body.get("tools")
    functions = [
        tool["function"]
        for tool in (tools if isinstance(tools, list) else ())
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
    ]
    choice = body.get("tool_choice")
    if choice == "required":
        if not functions:
            raise AskError("tool_choice is set, but there are no tools", "tool_choice")
        return dict(functions[0])
    if not isinstance(choice, dict):
        return None
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    for candidate in functions:
        if candidate.get("name") == name:
            return dict(candidate)
    raise AskError(f"the tool {name!r} is not among the tools", "tool_choice")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_token_list(value: object) -> bool:
    return isinstance(value, list) and all(_is_int(item) for item in value)
