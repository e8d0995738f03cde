"""How far a pull is: bytes, rate, time left."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

import anyio.to_thread

from shared.kit.clock import Clock

T = TypeVar("T")

_WINDOW_S = 10.0


class Phase(str, Enum):
    """What a pull does now."""

    CHECKING = "checking"
    DOWNLOADING = "downloading"
    WAITING = "waiting"
    UNPACKING = "unpacking"
    VERIFYING = "verifying"
    DONE = "done"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A moment of a pull. Bytes are those of the present phase; None means not known."""

    phase: Phase
    source: str
    bytes_done: int
    bytes_total: int | None
    rate_bps: float | None
    eta_s: float | None


OnProgress = Callable[[Progress], None]


class Meter:
    """Counts the bytes of a pull; the rate is that of the last ten seconds."""

    def __init__(self, clock: Clock) -> None:
        """Measure time by `clock`."""
        self._clock = clock
        self._phase = Phase.CHECKING
        self._source = ""
        self._done = 0
        self._total: int | None = None
        self._moved_at = clock()
        self._samples: deque[tuple[float, int]] = deque()

    @property
    def done(self) -> int:
        """Return the bytes of the present phase."""
        return self._done

    def still_s(self) -> float:
        """Return for how long no byte has come in the present phase."""
        return self._clock() - self._moved_at

    def begin(self, phase: Phase, *, total: int | None = None, done: int = 0) -> None:
        """Enter a phase; `done` bytes of it are there already and do not count for the rate."""
        self._phase, self._total, self._done = phase, total, done
        self._moved_at = self._clock()
        self._samples.clear()
        self._samples.append((self._moved_at, done))

    def name_source(self, ref: str) -> None:
        """Say which source the numbers belong to from now on."""
        self._source = ref
        self.begin(Phase.CHECKING)

    def show(self, phase: Phase) -> None:
        """Change what is shown and keep the count: a break in a download, and its end."""
        self._phase = phase

    def add(self, count: int) -> None:
        """Count more bytes."""
        self._move(self._done + count)

    def limit(self, total: int | None) -> None:
        """Set the bytes that this phase will have; None as long as that is not known."""
        self._total = total

    def reach(self, done: int) -> None:
        """Set the bytes of this phase to `done`, never over the total."""
        self._move(done if self._total is None else min(done, self._total))

    def _move(self, done: int) -> None:
        if done != self._done:
            self._done, self._moved_at = done, self._clock()

    def progress(self) -> Progress:
        """Return the present numbers."""
        now = self._clock()
        self._samples.append((now, self._done))
        while len(self._samples) > 2 and now - self._samples[1][0] >= _WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        is_moving = now > since and self._done > before
        rate = (self._done - before) / (now - since) if is_moving else None
        left = None if self._total is None else max(self._total - self._done, 0)
        return Progress(
            phase=self._phase,
            source=self._source,
            bytes_done=self._done,
            bytes_total=self._total,
            rate_bps=rate,
            eta_s=None if rate is None or left is None else left / rate,
        )


def gigabytes(count: int) -> str:
    """Return the number in GB (10^9), small ones in MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def as_line(progress: Progress) -> str:
    """Return a report as one line of text."""
    return "  ".join((progress.phase.value, progress.source, *numbers(progress)))


def numbers(progress: Progress) -> list[str]:
    """Return what is known of bytes, rate and time left, each as a text."""
    parts = []
    if progress.bytes_total:
        percent = 100 * progress.bytes_done / progress.bytes_total
        parts.append(f"{percent:.0f} % of {gigabytes(progress.bytes_total)}")
    elif progress.bytes_done:
        parts.append(gigabytes(progress.bytes_done))
    if progress.rate_bps is not None:
        parts.append(f"{gigabytes(int(progress.rate_bps))}/s")
    if progress.eta_s is not None:
        parts.append(f"{_duration(progress.eta_s)} left")
    return parts


def shown(progress: Progress) -> dict[str, object]:
    """Return a report for clients, who are not told from where it comes."""
    return {
        "phase": progress.phase.value,
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "rate_bps": None if progress.rate_bps is None else round(progress.rate_bps),
        "eta_s": None if progress.eta_s is None else round(progress.eta_s, 1),
    }


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"


@contextlib.asynccontextmanager
async def reported(meter: Meter, on_progress: OnProgress, every_s: float) -> AsyncIterator[None]:
    """Call `on_progress` now, every `every_s` seconds, and at a good end, from the event loop."""

    async def tick() -> None:
        while True:
            on_progress(meter.progress())
            await asyncio.sleep(every_s)

    ticker = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticker.cancel()
        await asyncio.gather(ticker, return_exceptions=True)
    on_progress(meter.progress())


async def in_thread(steps: Generator[int, None, T], meter: Meter) -> T:
    """Run blocking work step by step in a thread; each step yields the bytes it did.

    A cancelled pull stops after the present step, so that nothing writes once its lock is free.
    """
    try:
        while True:
            count = await _step(steps)
            if isinstance(count, _End):
                return count.value
            meter.add(count)
    finally:
        steps.close()


async def _step(steps: Generator[int, None, T]) -> int | _End[T]:
    """Return what the next step gives; a cancellation waits for it, since what runs can't be closed."""
    step = asyncio.ensure_future(anyio.to_thread.run_sync(_next, steps))
    try:
        return await asyncio.shield(step)
    except asyncio.CancelledError:
        await asyncio.wait({step})
        if not step.cancelled():
            step.exception()  # nobody else will ask
        raise


class _End(Generic[T]):
    """Carries a generator's result over the thread, where StopIteration can't pass."""

    def __init__(self, value: T) -> None:
        self.value = value


def _next(steps: Generator[int, None, T]) -> int | _End[T]:
    try:
        return next(steps)
    except StopIteration as end:
        return _End(end.value)
