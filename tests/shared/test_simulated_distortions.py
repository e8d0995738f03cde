"""Faults as functions of steps: what must hold for every answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.testing.dialect import Speaker, answer
from shared.testing.distortions import KINDS, STREAM_ONLY, distort
from shared.testing.faults import Fault, FaultScript, parse_faults, split_model
from shared.testing.personas import VLLM
from shared.testing.steps import (
    Answer,
    Cut,
    End,
    Head,
    Latency,
    Send,
    Steps,
    Wait,
    index_after,
    plan_answer,
)
from shared.testing.text import generate, pieces_of

HARMLESS = [
    "split",
    "byte_by_byte",
    "merged",
    "crlf",
    "cr",
    "no_space",
    "multi_line",
    "no_final_blank",
    "sse_comment",
    "sse_retry",
    "sse_id",
    "sse_event_only",
    "slow_stream",
    "headers",
]
"""Faults after which a reader that follows the specification still finds the same data."""


def steps_of(prompt: str, *, is_stream: bool = True, latency: Latency | None = None) -> Steps:
    body = {"messages": [{"role": "user", "content": prompt}], "stream": is_stream}
    speaker = Speaker(persona=VLLM, model="m", id="1", created=1)
    return plan_answer(answer("/v1/chat/completions", body, speaker), latency or Latency())


def body_of(steps: Steps) -> bytes:
    return b"".join(step.data for step in steps if isinstance(step, Send))


def data_of(body: bytes) -> list[object]:
    """Read SSE as the HTML specification says, data only; the values of JSON data."""
    text = body.decode().replace("\r\n", "\n").replace("\r", "\n")
    found: list[object] = []
    for block in text.split("\n\n"):
        fields = [line.partition(":") for line in block.split("\n")]
        data = [value.removeprefix(" ") for name, _, value in fields if name == "data"]
        joined = "\n".join(data)
        if data:
            found.append(joined if joined.strip() == "[DONE]" else json.loads(joined))
    return found


prompts = st.text(st.characters(codec="utf-8"), max_size=40)


@given(prompt=prompts, kinds=st.lists(st.sampled_from(HARMLESS), max_size=3, unique=True))
def test_harmless_faults_change_no_data(prompt: str, kinds: list[str]) -> None:
    assume(not {"crlf", "cr"} <= set(kinds))  # an end of line that is changed twice is two
    steps = steps_of(prompt)
    # once the bytes are cut anew, the other faults find no events any more
    kinds.sort(key=lambda kind: kind in {"split", "byte_by_byte", "merged"})
    faults = [Fault(kind=kind, ms=1) for kind in kinds]
    assert data_of(body_of(distort(steps, faults, VLLM))) == data_of(body_of(steps))


@given(prompt=prompts, size=st.integers(min_value=1, max_value=50))
def test_split_keeps_the_bytes(prompt: str, size: int) -> None:
    steps = steps_of(prompt)
    cut = distort(steps, [Fault(kind="split", size=size)], VLLM)
    assert body_of(cut) == body_of(steps)
    assert all(len(step.data) <= size for step in cut if isinstance(step, Send))
    assert sum(s.tokens for s in cut if isinstance(s, Send)) == sum(
        s.tokens for s in steps if isinstance(s, Send)
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("is_stream", [True, False])
def test_every_fault_leaves_an_answer_that_can_be_played(kind: str, is_stream: bool) -> None:
    steps = steps_of("one two", is_stream=is_stream)
    if kind in STREAM_ONLY and not is_stream:
        with pytest.raises(ValueError, match="needs a stream"):
            distort(steps, [Fault(kind=kind)], VLLM)
        return
    broken = distort(steps, [Fault(kind=kind)], VLLM)
    assert broken != steps
    first = next(i for i, step in enumerate(broken) if not isinstance(step, Wait))
    assert all(not isinstance(step, Head) for step in broken[first + 1 :])
    assert all(not isinstance(step, (End, Cut)) for step in broken[:-1])


@given(prompt=prompts, tokens=st.none() | st.integers(min_value=0, max_value=60))
def test_words_are_tokens(prompt: str, tokens: int | None) -> None:
    made = generate(prompt, seed=1, tokens=tokens)
    assert len(made.pieces) == (tokens if tokens is not None else len(pieces_of(made.text)))
    assert pieces_of(made.text) == list(made.pieces)
    for limit in range(1, len(made.pieces) + 2):
        cut = generate(prompt, seed=1, tokens=tokens, max_tokens=limit)
        assert cut.pieces == made.pieces[:limit]
        assert (cut.finish_reason == "length") == (limit < len(made.pieces))


def test_time_stands_before_the_first_token_and_between_tokens() -> None:
    steps = steps_of("x", latency=Latency(ttft_s=1, itl_s=0.5))
    shown = [step.seconds if isinstance(step, Wait) else type(step).__name__ for step in steps]
    token = [0.5, "Send"]
    assert shown == ["Head", 1, "Send", "Send", *token, *token, *token, "Send", "End"]
    plain = steps_of("x", is_stream=False, latency=Latency(ttft_s=1, itl_s=0.5))
    assert plain[0] == Wait(2.5)


def test_places_are_counted_in_pieces_of_body() -> None:
    steps = plan_answer(Answer(is_stream=True, parts=(Send(b"a"), Send(b"b"))), Latency())
    assert [index_after(steps, after) for after in (None, 0, 1, 2)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="the answer has 2 events"):
        index_after(steps, 3)


def test_faults_are_read_from_text() -> None:
    assert parse_faults("") == ()
    assert parse_faults("cut:after=2,reset=1; slow:ms=1.5") == (
        Fault(kind="cut", after=2, reset=True),
        Fault(kind="slow", ms=1.5),
    )
    assert split_model("org/tiny!cut:after=0") == ("org/tiny", (Fault(kind="cut", after=0),))
    assert split_model("org/tiny") == ("org/tiny", ())


def test_the_script_is_used_up_in_order() -> None:
    script = FaultScript()
    script.add("a:times=2;b", Fault(kind="c", path="/health"), (Fault(kind="d"),))
    taken = [script.take("/v1/completions", is_inference=True) for _ in range(4)]
    assert [[fault.kind for fault in entry] for entry in taken] == [
        ["a", "b"],
        ["a", "b"],
        ["d"],
        [],
    ]
    assert script.take("/other", is_inference=False) == ()
    assert [fault.kind for fault in script.take("/health", is_inference=False)] == ["c"]
    assert script.pending() == ()
