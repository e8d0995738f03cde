"""Notices the end of a process that is not a child of this one: nobody can wait for it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import anyio
import psutil

from local_agent.process import tree

_POLL_S = 0.2


class Watch:
    """Tells when one process ends; it is pinned from here on, so another one with its id is not it.

    On Linux by a file descriptor of the process (pidfd_open(2)), which can be read from its end on.
    Elsewhere, and on kernels without it, by asking five times a second.
    """

    def __init__(self, pid: int, *, may_pin: bool = True) -> None:
        """Take the process.

        Args:
            pid: its id.
            may_pin: whether to use a file descriptor where there are such.

        Raises:
            psutil.Error: there is none with this id.
        """
        self._process = psutil.Process(pid)
        self._fd = _pidfd(pid) if may_pin else None

    async def ended(self) -> None:
        """Return once it has ended; not to be called twice."""
        try:
            if self._fd is not None:
                with suppress(OSError):  # an event loop that can't wait for such a descriptor
                    await anyio.wait_readable(self._fd)
            # nothing else tells: it has to be asked for
            while tree.lives(self._process):  # noqa: ASYNC110
                await anyio.sleep(_POLL_S)
        finally:
            self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _pidfd(pid: int) -> int | None:
    # a Python that was built for older systems lacks the call
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        with suppress(OSError):
            return os.pidfd_open(pid)
    return None
