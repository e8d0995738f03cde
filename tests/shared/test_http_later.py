"""What a start does not load: the first request for it does, beside all others."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from shared.http.later import LoadedLater
from shared.http.lifespan import Lifespan
from shared.kit.memory import loading

SCOPE: dict[str, Any] = {"type": "http"}


class Slow:
    """Builds an application when it is let to, in whatever thread."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.begun = threading.Event()
        self.built = 0
        self.served = 0
        self.problem: Exception | None = None

    def build(self) -> Any:
        self.built += 1
        self.begun.set()
        assert self.goes_on.wait(30)
        if self.problem is not None:
            raise self.problem
        return self._serve

    async def _serve(self, _scope: Any, _receive: Any, _send: Any) -> None:
        self.served += 1


async def nothing(*_: Any) -> Any:
    """Stand for a channel that is not used."""


async def test_many_that_ask_at_once_wait_for_one_build_and_the_loop_goes_on() -> None:
    slow = Slow()
    app = LoadedLater(slow.build)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(app, SCOPE, nothing, nothing)
        await anyio.to_thread.run_sync(slow.begun.wait)
        assert slow.served == 0  # this runs: the loop is free meanwhile
        slow.goes_on.set()
    await app(SCOPE, nothing, nothing)
    assert (slow.built, slow.served) == (1, 6)


async def test_who_leaves_meanwhile_stops_it_for_nobody() -> None:
    slow = Slow()
    app = LoadedLater(slow.build)
    first = asyncio.ensure_future(app(SCOPE, nothing, nothing))
    await anyio.to_thread.run_sync(slow.begun.wait)
    second = asyncio.ensure_future(app(SCOPE, nothing, nothing))
    await asyncio.sleep(0)
    first.cancel()
    slow.goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    await second
    assert (slow.built, slow.served) == (1, 1)


async def test_a_build_that_fails_is_tried_again_by_the_next_request() -> None:
    slow = Slow()
    slow.goes_on.set()
    slow.problem = OSError("too many open files")
    app = LoadedLater(slow.build)
    with pytest.raises(OSError, match="too many"):
        await app(SCOPE, nothing, nothing)
    slow.problem = None
    await app(SCOPE, nothing, nothing)
    assert (slow.built, slow.served) == (2, 1)


async def lifespan_of(*, fails_at: str) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    @asynccontextmanager
    async def running() -> Any:
        if fails_at == "startup":
            raise OSError("no room")
        yield
        if fails_at == "shutdown":
            raise OSError("no room")

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(OSError, match="no room"):
        await Lifespan(nothing, running)({"type": "lifespan"}, nothing, send)
    return sent


async def test_a_start_or_a_stop_that_fails_says_so() -> None:
    (failed,) = await lifespan_of(fails_at="startup")
    assert failed["type"] == "lifespan.startup.failed"
    assert "no room" in failed["message"]
    complete, failed = await lifespan_of(fails_at="shutdown")
    assert complete["type"] == "lifespan.startup.complete"
    assert failed["type"] == "lifespan.shutdown.failed"


async def test_a_start_and_a_stop_are_told_once_each() -> None:
    sent: list[str] = []
    asked = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    is_running = False

    @asynccontextmanager
    async def running() -> Any:
        nonlocal is_running
        is_running = True
        yield
        is_running = False

    async def receive() -> Any:
        return next(asked)

    async def send(message: Any) -> None:
        sent.append(message["type"])
        assert is_running == (message["type"] == "lifespan.startup.complete")

    await Lifespan(nothing, running)({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_a_failure_that_nobody_waited_for_does_not_meet_the_next_request() -> None:
    slow = Slow()
    app = LoadedLater(slow.build)
    slow.problem = OSError("too many open files")
    left = asyncio.ensure_future(app(SCOPE, nothing, nothing))
    await anyio.to_thread.run_sync(slow.begun.wait)
    loading = app.load()
    left.cancel()
    slow.goes_on.set()
    await asyncio.wait((left, loading))
    slow.problem = None
    await app(SCOPE, nothing, nothing)
    assert (slow.built, slow.served) == (2, 1)


BUILDS_FOR_LONG = """
import asyncio, time
from shared.http.later import LoadedLater

async def main():
    LoadedLater(lambda: time.sleep(60)).load()
    await asyncio.sleep(0.05)

asyncio.run(main())
"""


def test_the_end_of_a_service_does_not_wait_for_it() -> None:
    subprocess.run([sys.executable, "-c", BUILDS_FOR_LONG], check=True, timeout=30)


@pytest.mark.parametrize("was_enabled", [True, False])
def test_modules_are_loaded_out_of_the_collectors_sight(was_enabled: bool) -> None:
    frozen = gc.get_freeze_count()
    (gc.enable if was_enabled else gc.disable)()
    try:
        with pytest.raises(ImportError), loading():
            assert not gc.isenabled()
            made: list[list[int]] = [[] for _ in range(100)]
            raise ImportError
        assert gc.isenabled() is was_enabled
        assert gc.get_freeze_count() >= frozen + len(made)
    finally:
        gc.enable()
