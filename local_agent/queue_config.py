"""The YAML file's fields about waiting: for a model, and for the memory of others."""

from __future__ import annotations

from pydantic import BaseModel, Field

from local_agent.domain import MAX_QUEUE, QUEUE_MAX_WAIT_S
from local_agent.memory.residency import MIN_RESIDENCY_S, SWAP_AFTER_S


class QueueFields(BaseModel):
    """What a model says of its slots, and of those who wait for one."""

    parallel: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Requests served at once; default: 2, and any number on an `external` server.",
    )
    max_queue: int = Field(
        default=MAX_QUEUE, ge=1, le=100_000, description="Requests that may wait; more get 429."
    )
    queue_max_wait: float = Field(
        default=QUEUE_MAX_WAIT_S,
        gt=0,
        description="Seconds that one may wait for a slot of the loaded model; then it gets 503.",
    )
    priority: int = Field(
        default=0,
        ge=-100,
        le=100,
        description="Among models that wait for memory, a higher one is loaded first.",
    )


class SwapFields(BaseModel):
    """What an agent says of models that share memory."""

    min_residency_s: float = Field(
        default=MIN_RESIDENCY_S,
        ge=0,
        description="Seconds that a loaded model stays before it makes room for another.",
    )
    swap_after_s: float = Field(
        default=SWAP_AFTER_S,
        ge=0,
        description="Seconds that a busy model may keep another waiting; then it takes nothing new.",
    )
