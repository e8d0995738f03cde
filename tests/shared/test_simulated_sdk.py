"""Faults of the simulated engine as the real SDK sees them: what a router must keep from it.

Source: the table in compatibility.md, 1.3, measured with openai-python 3.54.
"""

from __future__ import annotations

import json

import openai
import pytest

from shared.testing.engine import SimulatedEngine, running
from tests.loopback_sdks import openai_at

EVENTS = 7
"""Chunks of an undisturbed answer: the role, five words, and the last of them ends it."""


async def contents(fault: str) -> list[str | None]:
    """Stream an answer with this fault; returns the content of each chunk that has a choice."""
    async with (
        running(SimulatedEngine()) as base_url,
        openai_at(base_url) as sdk,
    ):
        stream = await sdk.chat.completions.create(
            model="simulated",
            messages=[{"role": "user", "content": "hello small world"}],
            stream=True,
            extra_headers={"x-sim-fault": fault},
        )
        chunks = [chunk async for chunk in stream]
    return [chunk.choices[0].delta.content if chunk.choices else None for chunk in chunks]


@pytest.mark.parametrize("shape", ["openai", "text", "event_error"])
async def test_an_error_event_is_raised(shape: str) -> None:
    with pytest.raises(openai.APIError):
        await contents(f"error_event:after=2,shape={shape}")


@pytest.mark.parametrize("shape", ["vllm_old", "message"])
async def test_an_alien_error_event_passes_for_a_chunk(shape: str) -> None:
    assert (await contents(f"error_event:after=2,shape={shape}"))[2:] == [None]


@pytest.mark.parametrize("fault", ["bad_json", "sse_retry", "sse_id", "sse_event_only"])
async def test_these_events_kill_the_stream(fault: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        await contents(fault)


async def test_bad_utf8_kills_the_stream() -> None:
    with pytest.raises(UnicodeDecodeError):
        await contents("bad_utf8")


async def test_a_cut_is_an_error_and_a_clean_end_is_not() -> None:
    with pytest.raises(openai.APIConnectionError):
        await contents("cut:after=2")
    assert await contents("no_done:after=2") == ["", "Simulated"]
    assert await contents("json_200") == []


@pytest.mark.parametrize(
    "fault",
    [
        *("crlf", "cr", "no_space", "multi_line", "no_final_blank", "sse_comment"),
        *("split", "byte_by_byte", "merged", "headers", "no_done", "after_done"),
    ],
)
async def test_these_change_nothing(fault: str) -> None:
    assert len(found := await contents(fault)) == EVENTS
    assert "".join(filter(None, found)).endswith(": hello small world")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("status:code=400", openai.BadRequestError),
        ("status:code=429,retry_after=1", openai.RateLimitError),
        ("html_502", openai.InternalServerError),
        ("stall:ms=1;cut", openai.APIConnectionError),
        ("garbage", openai.APIConnectionError),
    ],
)
async def test_failures_before_the_first_byte(fault: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await contents(fault)
