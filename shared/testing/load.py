"""Slots with a queue, and the metrics that vLLM and llama.cpp publish about them."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.testing.personas import Persona

_FINISHED = ("stop", "length", "abort", "error")


class Slots:
    """At most `limit` requests run; the others wait in the order in which they came."""

    def __init__(self, limit: int) -> None:
        """Take the number of slots."""
        self.limit = limit
        self.running = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot; a waiter that is cancelled leaves the queue."""
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self.running < self.limit:
            self.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            else:
                self._queue.remove(turn)
            raise

    def _leave(self) -> None:
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self.running -= 1


class Tally:
    """Counters that only grow."""

    def __init__(self) -> None:
        """Begin at nought."""
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.finished: Counter[str] = Counter()


def render_metrics(persona: Persona, model: str, slots: Slots, tally: Tally) -> bytes:
    """Return Prometheus text under the persona's names; it begins with what it is."""
    head = "# simulated engine, not a real model\n"
    lines = _vllm(model, slots, tally) if persona.name == "vllm" else _llamacpp(slots, tally)
    return (head + "".join(lines)).encode()


def _vllm(model: str, slots: Slots, tally: Tally) -> list[str]:
    escaped = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    labels = f'{{engine="0",model_name="{escaped}"}}'
    busy = slots.running / slots.limit
    lines = [
        _metric("vllm:num_requests_running", "gauge", labels, slots.running),
        _metric("vllm:num_requests_waiting", "gauge", labels, slots.waiting),
        _metric("vllm:kv_cache_usage_perc", "gauge", labels, busy),
        _metric("vllm:prompt_tokens_total", "counter", labels, tally.prompt_tokens),
        _metric("vllm:generation_tokens_total", "counter", labels, tally.generation_tokens),
        "# TYPE vllm:request_success_total counter\n",
    ]
    for reason in _FINISHED:
        more = f'{{engine="0",finished_reason="{reason}",model_name="{escaped}"}}'
        lines.append(f"vllm:request_success_total{more} {float(tally.finished[reason])}\n")
    return lines


def _llamacpp(slots: Slots, tally: Tally) -> list[str]:
    return [
        _metric("llamacpp:prompt_tokens_total", "counter", "", tally.prompt_tokens),
        _metric("llamacpp:tokens_predicted_total", "counter", "", tally.generation_tokens),
        _metric("llamacpp:requests_processing", "gauge", "", slots.running),
        _metric("llamacpp:requests_deferred", "gauge", "", slots.waiting),
    ]


def _metric(name: str, kind: str, labels: str, value: float) -> str:
    return f"# TYPE {name} {kind}\n{name}{labels} {float(value)}\n"
