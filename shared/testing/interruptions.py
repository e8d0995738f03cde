"""Faults of time and transport: what stops, stalls, comes late or comes too much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shared.testing.apis import around_text, is_end
from shared.testing.faults import Fault
from shared.testing.personas import Persona
from shared.testing.steps import (
    Crash,
    Cut,
    End,
    Head,
    Raw,
    Send,
    Step,
    Steps,
    Wait,
    halved,
    head_index,
    insert,
    is_stream,
    stop,
)
from shared.testing.substitutes import error_event, failed_event, own_event_shape

DONE = b"data: [DONE]\n\n"


def _in_pieces(steps: Steps, fault: Fault) -> Steps:
    """Give a plain body a middle, if the fault is to happen there."""
    return halved(steps) if fault.after and not is_stream(steps) else steps


def cut(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Close the connection, by RST if `reset`."""
    return stop(_in_pieces(steps, fault), fault.after, Cut(fault.reset))


def crash(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """End the process."""
    return stop(_in_pieces(steps, fault), fault.after, Crash(fault.exit_code, fault.signal))


def stall(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Say nothing for `ms`, or until the client leaves."""
    pause = Wait(fault.ms / 1000 if fault.ms else None)
    return insert(_in_pieces(steps, fault), fault.after, pause)


def no_done(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """End cleanly without the API's last event; with `after` in the middle."""
    if fault.after is not None:
        return stop(steps, fault.after, End())
    return tuple(s for s in steps if not (isinstance(s, Send) and is_end(s.data, persona.api)))


def fail_in_stream(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Send an error event of `shape` as the next one and end, after `[DONE]` if `done`."""
    shape, number = fault.shape or own_event_shape(persona), fault.after or 0
    if shape == "failed":
        event = Send(failed_event(steps, number))
    else:
        event = Send(error_event(shape, code=fault.code, number=number))
    done = (Send(DONE),) if fault.done else ()
    return stop(steps, fault.after or 0, event, *done, End())


def bad_chunk(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Break the chunked framing."""
    return stop(steps, fault.after or 0, Raw(b"zz\r\nno chunk size\r\n"), Cut())


def slow_headers(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Send the head byte by byte over `ms` (1000)."""
    drip_s = (fault.ms or 1000.0) / 1000
    return _with_head(steps, lambda head: replace(head, drip_s=drip_s))


def slow(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Wait `ms` before the head, or behind `after` events."""
    return insert(steps, fault.after, Wait(fault.ms / 1000))


def slow_stream(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Wait `ms` behind each event."""
    slowed: list[Step] = []
    for step in steps:
        slowed += [step, Wait(fault.ms / 1000)] if isinstance(step, Send) else [step]
    return tuple(slowed)


def after_done(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Send one more event behind the last."""
    late = b"after the end".join(around_text(persona.api))
    return (*steps[:-1], Send(late), steps[-1])


def hang_after_done(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Keep the body open behind the last event."""
    return (*steps[:-1], Wait(fault.ms / 1000 if fault.ms else None), steps[-1])


def headers(steps: Steps, fault: Fault, persona: Persona) -> Steps:
    """Add headers that are not for the client of a proxy."""
    extra = (
        ("set-cookie", "session=simulated; HttpOnly"),
        ("server", "nginx/1.0 (simulated)"),
        ("x-powered-by", "simulated"),
        ("x-request-id", "req-simulated"),
        ("alt-svc", 'h3=":443"'),
        ("keep-alive", "timeout=5"),
    )
    return _with_head(steps, lambda head: replace(head, headers=head.headers + extra))


def _with_head(steps: Steps, change: Callable[[Head], Head]) -> Steps:
    index = head_index(steps)
    head = steps[index]
    assert isinstance(head, Head)  # noqa: S101 - for the type checker: head_index finds a Head
    return (*steps[:index], change(head), *steps[index + 1 :])
