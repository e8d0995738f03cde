"""What an engine does wrong, by chance: in the words of the simulated engine's header."""

from __future__ import annotations

from random import Random

EVERYWHERE = (
    "status:code=500",
    "status:code=503",
    "status:code=503,retry_after=1",
    "status:code=429,retry_after=1",
    "status:code=429",
    "status:code=400",
    "status:code=500,shape=html",
    "html_502",
    "redirect",
    "error_200",
    "empty_200",
    "garbage",
    "bad_json",
    "bad_utf8",
    "headers",
    "cut",
    "cut:reset=true",
    "cut:after=0",
    "cut:after=1",
    "cut:after=1,reset=true",
    "stall",
    "stall:after=1",
    "slow:ms=700",
    "slow:ms=1500",
    "slow_headers:ms=300",
)
IN_STREAMS = (
    "cut:after=3",
    "cut:after=3,reset=true",
    "stall:after=3",
    "stall:ms=900,after=3",
    "no_done",
    "no_done:after=2",
    "error_event",
    "error_event:after=2",
    "error_event:after=2,done=true",
    "error_event:shape=text",
    "error_event:shape=vllm_old,after=1",
    "bad_chunk",
    "bad_chunk:after=2",
    "json_200",
    "slow_stream:ms=10",
    "after_done",
    "hang_after_done:ms=800",
    "hang_after_done",
    "huge_line:size=400000",
    "split",
    "split:size=3",
    "merged",
    "byte_by_byte",
    "bom",
    "no_final_blank",
    "sse_retry",
    "sse_id",
    "sse_comment",
    "sse_event_only",
    "sse_ping",
    "sse_empty_data",
    "null_error",
    "crlf",
    "no_space",
    "multi_line",
)


def choose_fault(rng: Random, *, is_stream: bool) -> str:
    """Return one that an answer of this kind has a place for."""
    return rng.choice((*EVERYWHERE, *IN_STREAMS) if is_stream else EVERYWHERE)
