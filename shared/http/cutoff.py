"""Cutting a block of code short from outside, at any await, for a reason that its owner knows.

What `asyncio.timeout` is, for Python 3.10 too, and without the cost of a scope of anyio: these stand
around every request.
"""

from __future__ import annotations

import asyncio
from asyncio.events import TimerHandle
from types import TracebackType
from weakref import WeakKeyDictionary

# Python 3.10 does not count how often a task is cancelled, and makes one error of two cancellations in
# a turn. There we count our own; that of the whole task, in the same turn as ours, is taken for ours.
_cuts: WeakKeyDictionary[asyncio.Task[object], int] = WeakKeyDictionary()


def _cancelling(task: asyncio.Task[object]) -> int:
    counted: int = task.cancelling() if hasattr(task, "cancelling") else _cuts.get(task, 0)
    return counted


def _cancel(task: asyncio.Task[object]) -> None:
    if not hasattr(task, "cancelling"):
        _cuts[task] = _cuts.get(task, 0) + 1
    task.cancel()


def _uncancel(task: asyncio.Task[object]) -> int:
    if hasattr(task, "uncancel"):
        left: int = task.uncancel()
    else:
        left = _cuts[task] = _cuts[task] - 1
    return left


class Cutoff:
    """`cut` cancels the block, which then ends quietly; `is_cut` tells afterwards.

    The cancellation of the whole task, which is somebody else's, passes through.
    """

    __slots__ = ("_cancelling", "_is_open", "_task", "is_cut")

    def __init__(self) -> None:
        """Cut nothing yet."""
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._is_open = False
        self.is_cut = False

    def __enter__(self) -> Cutoff:  # noqa: PYI034 - typing has no Self before Python 3.11
        """Open the block, in a task."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine's own code
        self._task = task
        self._cancelling = _cancelling(task)
        self._is_open = True
        return self

    def cut(self) -> None:
        """Cancel the block, unless it is over. To be called from a callback of the loop."""
        if self._is_open and not self.is_cut and self._task is not None:
            self.is_cut = True
            _cancel(self._task)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Close the block; swallow the cancellation that `cut` caused."""
        self._is_open = False
        task, self._task = self._task, None
        if not self.is_cut or task is None:
            return False
        return _uncancel(task) <= self._cancelling and kind is asyncio.CancelledError


class TimeLimit(Cutoff):
    """Cuts its block when `seconds` are over, unless `lift` was called before."""

    __slots__ = ("_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        """Count from when the block is entered."""
        super().__init__()
        self._seconds = seconds
        self._timer: TimerHandle | None = None

    def __enter__(self) -> TimeLimit:  # noqa: PYI034 - likewise
        """Open the block."""
        super().__enter__()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self.cut)
        return self

    def lift(self) -> None:
        """Let the block take as long as it takes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Close the block."""
        self.lift()
        return super().__exit__(kind, error, trace)
