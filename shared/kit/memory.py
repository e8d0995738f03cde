"""What a process that serves for long does about its memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Import modules out of the garbage collector's sight: what they make stays.

    It would walk through all of them again and again: a tenth of a start's time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def settle() -> None:
    """Take all that is loaded by now out of the garbage collector's sight; called once, at the end of a start.

    Modules, classes and routes stay until the process ends. Without this every full collection walks
    through them, which stops all requests for 50 ms.
    """
    gc.collect()
    gc.freeze()
