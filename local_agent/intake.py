"""Whether the agent takes new work, and what it still has to finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

import anyio

from local_agent import refusals
from local_agent.errors import AgentDraining
from shared.http.errors import QueueFull

_RETRY_S = 5.0
_HOST_RETRY_S = 60.0


class IntakeState(str, Enum):
    """How the agent stands to new work."""

    READY = "ready"
    DRAINING = "draining"
    DRAINED = "drained"


class Intake:
    """Counts the requests that were let in; refuses others from `drain` to `resume`.

    It is not kept anywhere: an agent that starts takes work. `reason` says why the host makes it drain, if
    it does: `resume` does not end that.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        """Take work; `notify` is called when that changes, and when a drain has nothing left."""
        self._notify = notify
        self._in_hand = 0
        self._is_on = False
        self._limit: int | None = None
        self._ended: anyio.Event | None = None
        self.reason: str | None = None
        self.is_ending = False

    @property
    def state(self) -> IntakeState:
        """Return how it stands."""
        if not self._is_on and self.reason is None:
            return IntakeState.READY
        return IntakeState.DRAINING if self._in_hand else IntakeState.DRAINED

    @property
    def in_hand(self) -> int:
        """Return how many requests were let in and have not ended, those that wait included."""
        return self._in_hand

    async def finished(self) -> None:
        """Return when nothing is in hand."""
        while self._in_hand:
            self._ended = self._ended or anyio.Event()
            await self._ended.wait()

    def drain(self) -> None:
        """Take nothing new."""
        self._is_on = True
        self._notify()

    def resume(self) -> None:
        """Take work again, unless the agent is ending."""
        self._is_on = self.is_ending
        self._notify()

    def hold(self, reason: str | None, *, limit: int | None = None) -> None:
        """Take nothing new for a reason of the host, or so many requests at a time; None ends either."""
        is_news, self.reason, self._limit = reason != self.reason, reason, limit
        if is_news:
            self._notify()

    def close(self) -> None:
        """Drain for good: the agent ends."""
        self.is_ending = True
        self.drain()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Let a request in, and count it for as long as the context is open; see `begin`."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """Let a request in, and count it until `end`.

        Raises:
            AgentDraining: nothing new is taken.
            QueueFull: as many are in hand as the host is for now.
            ModelUnavailable: the agent is ending.
        """
        if self.is_ending:
            raise refusals.stopping()
        if self._is_on:
            raise AgentDraining(
                "This agent is draining: it finishes the requests that it has and takes no new ones. "
                "`iir-agent resume` ends that.",
                retry_after_s=_RETRY_S,
            )
        if self.reason is not None:
            raise AgentDraining(
                f"This agent takes no new requests now: {self.reason} (`power` in its YAML file says when).",
                retry_after_s=_HOST_RETRY_S,
            )
        if self._limit is not None and self._in_hand >= self._limit:
            raise QueueFull(
                f"On battery this agent takes {self._limit} at a time (`power` in its YAML file).",
                retry_after_s=_RETRY_S,
            )
        self._in_hand += 1

    def end(self) -> None:
        """Count a request as ended."""
        self._in_hand -= 1
        if not self._in_hand and self._ended is not None:
            self._ended.set()
            self._ended = None
        if self.state is IntakeState.DRAINED:
            self._notify()
