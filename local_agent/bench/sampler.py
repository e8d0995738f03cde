"""Looks at the agent and the machine while a measurement runs: memory at its most, others' work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_EVERY_S = 0.5
_STRIKES = 2
"""A request that has just ended may still be counted in one look."""


@dataclass(frozen=True, slots=True)
class Look:
    """The machine at one moment: requests that the agent has sent to engines, and memory in MiB.

    `memory_mb` is what the measured model's processes hold, None where that can't be seen; `wired_mb` is
    the wired memory of the whole Mac, in which what Metal holds is counted, None elsewhere.
    """

    in_flight: int
    memory_mb: int | None = None
    wired_mb: int | None = None


class Tally:
    """What the looks at a measurement add up to. Pure, but for a lock."""

    def __init__(self, wired_before_mb: int | None = None) -> None:
        """Take the wired memory from before the load, if there is such a thing here."""
        self._wired_before_mb = wired_before_mb
        self._lock = threading.Lock()
        self._mine = 0
        self._strikes = 0
        self._peak_mb: int | None = None
        self.is_disturbed = False

    @contextmanager
    def in_flight(self, count: int) -> Iterator[None]:
        """Say that so many requests are the measurement's own."""
        with self._lock:
            self._mine += count
        try:
            yield
        finally:
            with self._lock:
                self._mine -= count

    def add(self, look: Look) -> None:
        """Take a look."""
        with self._lock:
            self._strikes = self._strikes + 1 if look.in_flight > self._mine else 0
            self.is_disturbed = self.is_disturbed or self._strikes >= _STRIKES
        grown_mb = None
        if look.wired_mb is not None and self._wired_before_mb is not None:
            grown_mb = look.wired_mb - self._wired_before_mb
        seen = [mb for mb in (self._peak_mb, look.memory_mb, grown_mb) if mb is not None and mb > 0]
        self._peak_mb = max(seen, default=None)

    @property
    def peak_bytes(self) -> int | None:
        """Return the most memory that was seen; None if none could be."""
        return None if self._peak_mb is None else self._peak_mb * 2**20


@contextmanager
def sampled(tally: Tally, look: Callable[[], Look], every_s: float = _EVERY_S) -> Iterator[None]:
    """Take looks in a thread for as long as the context is open, and one at its end."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(every_s):
            tally.add(look())

    thread = threading.Thread(target=run, name="bench sampler", daemon=True)
    thread.start()
    try:
        yield
        tally.add(look())
    finally:
        is_over.set()
        thread.join()
