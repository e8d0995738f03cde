"""What a request asks for, and what of it is refused."""

from __future__ import annotations

from typing import Any, Protocol

from .words import Ask, Limits, Refused, TooLong

_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
_MOST_STOPS = 16


class Encoder(Protocol):
    """Turns text into tokens."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        ...

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Return the tokens of a conversation; raises `Refused`."""
        ...


def ask_of(body: dict[str, Any], model: Encoder, limits: Limits, *, is_chat: bool) -> Ask:
    """Return what a request asks for.

    Raises:
        Refused: it can't be served, or not as it is asked for.
    """
    _refuse_unknown(body)
    ids = _chat_ids(body, model) if is_chat else _prompt_ids(body, model)
    most = min(limits.prompt, limits.context - 1)
    if len(ids) > most:
        raise TooLong(
            f"the prompt has {len(ids)} tokens, and this engine takes at most {most} here"
            " (`context`, and option max_prompt_tokens); shorten it"
        )
    if not ids:
        raise Refused("the prompt is empty")
    room = limits.context - len(ids)
    named = body.get("max_completion_tokens") if is_chat else None
    default = room if is_chat else _COMPLETION_TOKENS
    wanted = named if named is not None else body.get("max_tokens")
    tokens = default if wanted is None else _number({"max_tokens": wanted}, "max_tokens", 1, 2**31)
    seed = body.get("seed")
    return Ask(
        ids=ids,
        max_tokens=min(int(tokens), room),
        temperature=_number(body, "temperature", 0, 2, 1.0),
        top_p=_number(body, "top_p", 0, 1, 1.0) or 1e-6,
        top_k=int(_number(body, "top_k", 0, 2**31, 0)),
        seed=None if seed is None else int(_number(body, "seed", -(2**63), 2**63 - 1)) % 2**63,
        stops=_stops(body.get("stop")),
    )


def _refuse_unknown(body: dict[str, Any]) -> None:
    """Refuse what would change the answer and is not known here."""
    has_tools = bool(body.get("tools") or body.get("functions"))
    form = body.get("response_format")
    wrong = {
        "tools": has_tools and body.get("tool_choice") != "none",
        "response_format": isinstance(form, dict) and form.get("type") != "text",
        "n": (body.get("n") or 1) != 1,
        "best_of": (body.get("best_of") or 1) != 1,
        "logprobs": bool(body.get("logprobs")),
        "echo": bool(body.get("echo")),
        "suffix": bool(body.get("suffix")),
    }
    for name, is_asked in wrong.items():
        if is_asked:
            raise Refused(f"engine torch_mps does not know `{name}`")


def _number(
    body: dict[str, Any], name: str, least: float, most: float, default: float | None = None
) -> float:
    value = body.get(name)
    if value is None and default is not None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:  # type: ignore[operator] # it is a number
        raise Refused(f"`{name}` must be a number of at least {least} and at most {most}")
    return value  # type: ignore[return-value] # likewise


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    is_good = isinstance(stops, list) and len(stops) <= _MOST_STOPS
    if not is_good or not all(isinstance(stop, str) and stop for stop in stops):
        raise Refused(f"`stop` must be a text, or a list of at most {_MOST_STOPS} of them")
    return tuple(stops)


def _prompt_ids(body: dict[str, Any], model: Encoder) -> list[int]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return model.encode(prompt)
    if isinstance(prompt, list) and all(type(item) is int and item >= 0 for item in prompt):
        return list(prompt)
    raise Refused("`prompt` must be one text, or a list of tokens")


def _chat_ids(body: dict[str, Any], model: Encoder) -> list[int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused("`messages` must be a list with at least one message")
    return model.encode_chat([_message(message) for message in messages])


def _message(message: Any) -> dict[str, Any]:
    """Return a message whose content is one text, which is what templates take."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise Refused("each of `messages` must be an object with a `role`")
    content = message.get("content")
    if isinstance(content, list):
        found = [part.get("text") for part in content if isinstance(part, dict)]
        texts = [text for text in found if isinstance(text, str)]
        if len(texts) != len(content):
            raise Refused("engine torch_mps takes text only")
        content = "".join(texts)
    return {**message, "content": content or ""}
