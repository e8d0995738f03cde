"""Faults in the bytes: SSE that breaks a parser, and SSE that only looks as if it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shared.testing.apis import around_text, name_line
from shared.testing.faults import Fault
from shared.testing.personas import Persona
from shared.testing.steps import Send, Steps, Wait, insert, is_stream
from shared.testing.substitutes import instead

Distortion = Callable[[Steps, Fault, Persona], Steps]
_BLOCK = 64 * 1024


def injected(data: bytes) -> Distortion:
    """Return a fault that sends `data` behind `after` (1) events."""

    def inject(steps: Steps, fault: Fault, persona: Persona) -> Steps:
        after = 1 if fault.after is None else fault.after
        return insert(steps, after, Send(data))

    return inject


def rewritten(change: Callable[[bytes], bytes]) -> Distortion:
    """Return a fault that changes each event."""

    def rewrite(steps: Steps, fault: Fault, persona: Persona) -> Steps:
        return tuple(
            replace(step, data=change(step.data)) if isinstance(step, Send) else step
            for step in steps
        )

    return rewrite


def huge_line(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """One valid event of about `size` bytes (16 MiB), sent in blocks."""
    blocks = (Send(b"x" * _BLOCK),) * max((fault.size or 16 * 2**20) // _BLOCK, 1)
    before, behind = around_text(persona.api)
    after = 1 if fault.after is None else fault.after
    return insert(steps, after, Send(before), *blocks, Send(behind))


def bad_json(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Send JSON that stops in the middle."""
    if is_stream(steps):
        event = name_line(persona.api) + b'data: {"id": "broken", \n\n'
        return injected(event)(steps, fault, persona)
    return instead(200, "application/json", b'{"id": "broken", ')


def bad_utf8(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Send bytes that are no UTF-8."""
    if is_stream(steps):
        return injected(b"\xff\xfe".join(around_text(persona.api)))(steps, fault, persona)
    return instead(200, "application/json", b'{"id": "\xff\xfe"}')


def split(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Cut the body anew, every `size` bytes (7), without regard to events."""
    pieces = [step for step in steps if isinstance(step, Send)]
    body = b"".join(piece.data for piece in pieces)
    size = fault.size or 7
    return _with_sends(steps, [body[at : at + size] for at in range(0, len(body), size)])


def merged(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Send the whole stream in one piece."""
    return _with_sends(steps, [b"".join(s.data for s in steps if isinstance(s, Send))])


def _with_sends(steps: Steps, pieces: list[bytes]) -> Steps:
    tokens = sum(step.tokens for step in steps if isinstance(step, Send))
    sends = [Send(piece, tokens if at == 0 else 0) for at, piece in enumerate(pieces)]
    index = next(i for i, step in enumerate(steps) if isinstance(step, Send))
    rest = tuple(step for step in steps[index:] if not isinstance(step, (Send, Wait)))
    return (*steps[:index], *sends, *rest)


def bom(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Begin the stream with a byte order mark."""
    return insert(steps, 0, Send(b"\xef\xbb\xbf"))


def no_final_blank(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Leave out the last blank line."""
    index = max(i for i, step in enumerate(steps) if isinstance(step, Send))
    last = steps[index]
    assert isinstance(last, Send)  # noqa: S101 - for the type checker: the index says so
    short = replace(last, data=last.data.removesuffix(b"\n"))
    return (*steps[:index], short, *steps[index + 1 :])
