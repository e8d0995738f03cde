"""Every kind of fault by its name: steps of a good answer in, steps of a broken one out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shared.testing import interruptions, malformations, substitutes
from shared.testing.faults import Fault
from shared.testing.malformations import Distortion, injected, rewritten
from shared.testing.personas import Persona
from shared.testing.steps import Steps, is_stream


def distort(steps: Steps, faults: Sequence[Fault], persona: Persona) -> Steps:
    """Apply faults in order.

    Raises:
        ValueError: an unknown kind, or one that this answer has no place for.
    """
    check_kinds(faults)
    for fault in faults:
        if fault.kind in STREAM_ONLY and not is_stream(steps):
            raise ValueError(f"fault {fault.kind!r} needs a stream")
        steps = KINDS[fault.kind](steps, fault, persona)
    return steps


def check_kinds(faults: Sequence[Fault]) -> None:
    """Refuse a fault that does not exist, so that no test relies on one.

    Raises:
        ValueError: an unknown kind.
    """
    for fault in faults:
        if fault.kind not in KINDS:
            known = ", ".join(sorted(KINDS))
            raise ValueError(f"unknown fault {fault.kind!r}; known: {known}")


KINDS: Mapping[str, Distortion] = {
    "status": substitutes.status,
    "html_502": substitutes.html_502,
    "redirect": substitutes.redirect,
    "error_200": substitutes.error_200,
    "json_200": substitutes.json_200,
    "empty_200": substitutes.empty_200,
    "garbage": substitutes.garbage,
    "cut": interruptions.cut,
    "crash": interruptions.crash,
    "stall": interruptions.stall,
    "no_done": interruptions.no_done,
    "error_event": interruptions.fail_in_stream,
    "bad_chunk": interruptions.bad_chunk,
    "slow": interruptions.slow,
    "slow_headers": interruptions.slow_headers,
    "slow_stream": interruptions.slow_stream,
    "after_done": interruptions.after_done,
    "hang_after_done": interruptions.hang_after_done,
    "headers": interruptions.headers,
    "bad_json": malformations.bad_json,
    "bad_utf8": malformations.bad_utf8,
    "huge_line": malformations.huge_line,
    "split": malformations.split,
    "merged": malformations.merged,
    "bom": malformations.bom,
    "no_final_blank": malformations.no_final_blank,
    "byte_by_byte": lambda steps, fault, persona: malformations.split(
        steps, Fault(kind="split", size=1), persona
    ),
    "sse_retry": injected(b"retry: 3000\n\n"),
    "sse_id": injected(b"id: 1\n\n"),
    "sse_comment": injected(b": simulated keep-alive\n\n"),
    "sse_event_only": injected(b"event: ping\n\n"),
    "sse_ping": injected(b"event: ping\ndata: {}\n\n"),
    "sse_empty_data": injected(b"data:\n\n"),
    "null_error": injected(b'data: {"error":null,"choices":[{"index":0,"delta":{}}]}\n\n'),
    "crlf": rewritten(lambda data: data.replace(b"\n", b"\r\n")),
    "cr": rewritten(lambda data: data.replace(b"\n", b"\r")),
    "no_space": rewritten(lambda data: data.replace(b"data: ", b"data:", 1)),
    "multi_line": rewritten(lambda data: data.replace(b"data: {", b"data: {\ndata: ", 1)),
}
"""Every kind of fault. Those in `STREAM_ONLY` are refused for an answer that is no stream."""

STREAM_ONLY = frozenset(
    {"no_done", "error_event", "bad_chunk", "after_done", "hang_after_done", "huge_line", "split"}
    | {"merged", "bom", "no_final_blank", "byte_by_byte", "null_error", "crlf", "cr", "no_space"}
    | {"multi_line", *(kind for kind in KINDS if kind.startswith("sse_"))}
)
