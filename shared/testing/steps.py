"""What an answer consists of, as data: steps that faults rearrange and a player carries out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers. `length=None`: the body is chunked."""

    status: int
    headers: Headers
    length: int | None = None
    drip_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Send:
    """A piece of the body: one SSE event, or a whole JSON body. `tokens` counts for metrics."""

    data: bytes
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes for the wire that no framing is put around."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """A pause; `None` lasts until the client goes away."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class End:
    """The orderly end of the body."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection closes here, by FIN or RST."""

    reset: bool = False


@dataclass(frozen=True, slots=True)
class Crash:
    """The process ends here: by exit code, or by a signal sent to itself."""

    exit_code: int = 1
    signal: int = 0


Step = Head | Send | Raw | Wait | End | Cut | Crash
Steps = tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer without its timing: one part per SSE event, or one part that is the body."""

    status: int = 200
    headers: Headers = ()
    parts: tuple[Send, ...] = ()
    is_stream: bool = False
    prompt_tokens: int = 0
    finish_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds to the first token, and between tokens."""

    ttft_s: float = 0.0
    itl_s: float = 0.0


def plan_answer(answer: Answer, latency: Latency) -> Steps:
    """Return the steps of an answer without faults.

    A stream sends its head at once, its first event after `ttft_s`, each further token after
    `itl_s`. Anything else comes whole, after the time that all of its tokens take.
    """
    if not answer.is_stream:
        tokens = sum(part.tokens for part in answer.parts)
        pause_s = latency.ttft_s + latency.itl_s * max(tokens - 1, 0)
        length = sum(len(part.data) for part in answer.parts)
        head = Head(answer.status, answer.headers, length)
        return (*_pause(pause_s), head, *answer.parts, End())
    steps: list[Step] = [Head(answer.status, answer.headers), *_pause(latency.ttft_s)]
    is_first_token = True
    for part in answer.parts:
        if part.tokens and not is_first_token:
            steps += _pause(latency.itl_s)
        is_first_token = is_first_token and not part.tokens
        steps.append(part)
    return (*steps, End())


def head_index(steps: Sequence[Step]) -> int:
    """Return where the head is."""
    return next(index for index, step in enumerate(steps) if isinstance(step, Head))


def index_after(steps: Sequence[Step], events: int | None) -> int:
    """Return the index just behind `events` pieces of body; 0 is just behind the head.

    `None` is the place of the head itself.

    Raises:
        ValueError: the answer has fewer pieces.
    """
    if events is None:
        return head_index(steps)
    if events == 0:
        return head_index(steps) + 1
    places = [index for index, step in enumerate(steps) if isinstance(step, Send)]
    if events > len(places):
        raise ValueError(f"after={events}, but the answer has {len(places)} events")
    return places[events - 1] + 1


def is_stream(steps: Steps) -> bool:
    """Tell whether the body is an open-ended stream."""
    return any(isinstance(step, Head) and step.length is None for step in steps)


def insert(steps: Steps, after: int | None, *new: Step) -> Steps:
    """Add steps behind `after` pieces of body."""
    index = index_after(steps, after)
    return (*steps[:index], *new, *steps[index:])


def stop(steps: Steps, after: int | None, *last: Step) -> Steps:
    """End with other steps behind `after` pieces of body."""
    return (*steps[: index_after(steps, after)], *last)


def halved(steps: Steps) -> Steps:
    """Cut each piece of body in two, so that `after=1` is the middle of a plain one."""
    found: list[Step] = []
    for step in steps:
        if isinstance(step, Send):
            middle = len(step.data) // 2
            found += [Send(step.data[:middle]), replace(step, data=step.data[middle:])]
        else:
            found.append(step)
    return tuple(found)


def _pause(seconds: float) -> tuple[Wait, ...]:
    return (Wait(seconds),) if seconds > 0 else ()
