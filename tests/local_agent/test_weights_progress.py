"""Blocking steps of a pull in a thread: what is counted, and how a stopped pull ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator

import pytest

from local_agent.weights.progress import Meter, in_thread
from shared.kit.clock import monotonic


class Steps:
    """Three steps, of which the second waits until it may end."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.is_inside = threading.Event()
        self.done: list[str] = []
        self.error: Exception | None = None

    def run(self) -> Generator[int, None, str]:
        try:
            yield 1
            self.is_inside.set()
            assert self.may_end.wait(10)
            if self.error is not None:
                raise self.error
            self.done.append("second")
            yield 2
            self.done.append("third")
            return "all"
        finally:
            self.done.append("closed")

    async def entered(self) -> None:
        assert await asyncio.to_thread(self.is_inside.wait, 10)


async def test_the_bytes_of_all_steps_are_counted() -> None:
    steps, meter = Steps(), Meter(monotonic)
    steps.may_end.set()
    assert await in_thread(steps.run(), meter) == "all"
    assert meter.done == 3
    assert steps.done == ["second", "third", "closed"]


@pytest.mark.parametrize("error", [None, OSError("the disk is full")])
async def test_a_stopped_pull_ends_after_the_step_it_is_in(error: Exception | None) -> None:
    steps = Steps()
    steps.error = error
    pull = asyncio.create_task(in_thread(steps.run(), Meter(monotonic)))
    await steps.entered()
    pull.cancel()
    await asyncio.sleep(0.05)
    assert not pull.done(), "the lock would be free while a thread still writes"
    steps.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert steps.done == (["second", "closed"] if error is None else ["closed"])
