"""What is passed between the server and the thread that generates."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


class Refused(Exception):
    """A request that can't be served; the message goes to the client, in OpenAI's shape."""

    code: str | None = None

    def __init__(self, message: str, *, status: int = 400) -> None:
        """Answer with `status`, 400 for what is wrong with the request."""
        super().__init__(message)
        self.status = status


class TooLong(Refused):
    """A prompt that does not fit; clients know OpenAI's code for it, and shorten the conversation."""

    code = "context_length_exceeded"


@dataclass(frozen=True)
class Limits:
    """What the server was started for, in tokens."""

    context: int
    prompt: int


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is to be generated."""

    ids: list[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """The end of a generation."""

    reason: str
    tokens: int


@dataclass
class Job:
    """One request on its way through the generating thread; `put` may be called from there."""

    ask: Ask
    put: Callable[[str | Done | Refused], None]
    left: threading.Event = field(default_factory=threading.Event)
