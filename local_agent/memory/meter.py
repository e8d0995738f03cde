"""Measures: the size of weights on the disk, and the memory of a worker's processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import anyio
import anyio.to_thread
import psutil

from local_agent.domain import Deployment, ModelId, WorkerState, WorkerView

_EVERY_S = 5.0


def weights_bytes(deployment: Deployment) -> int:
    """Return the size of the weights, a file or a folder; 0 if they can't be read."""
    if deployment.pulled is not None:
        return deployment.pulled.size_bytes
    path = deployment.weights
    try:
        if path is None or path.is_file():
            return 0 if path is None else path.stat().st_size
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    except OSError:
        return 0  # the engine will say what is wrong with them


def tree_mb(pid: int) -> int:
    """Return the resident memory in MiB of a process and of all below it; 0 if it is gone."""
    total = 0
    with suppress(psutil.Error):
        leader = psutil.Process(pid)
        for process in (leader, *leader.children(recursive=True)):
            with suppress(psutil.Error):  # one that ends meanwhile
                total += process.memory_info().rss
    return total // 2**20


class Meter:
    """Looks at the memory of ready workers every few seconds."""

    def __init__(
        self,
        workers: Callable[[], Iterable[WorkerView]],
        measured: Callable[[ModelId, int], None],
        *,
        measure: Callable[[int], int] = tree_mb,
        every_s: float = _EVERY_S,
    ) -> None:
        """Take whom to look at and whom to tell.

        Args:
            workers: returns the workers.
            measured: takes a model and the MiB that its worker takes.
            measure: returns the MiB of a process id; may block.
            every_s: how often to look.
        """
        self._workers = workers
        self._measured = measured
        self._measure = measure
        self._every_s = every_s

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await anyio.sleep(self._every_s)

    async def look(self) -> None:
        """Measure every ready worker once."""
        for view in tuple(self._workers()):
            if view.pid is not None and view.state is WorkerState.READY:
                mb = await anyio.to_thread.run_sync(self._measure, view.pid)
                if any(
                    one.pid == view.pid for one in self._workers()
                ):  # it has not ended meanwhile
                    self._measured(view.model, mb)
