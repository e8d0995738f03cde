"""A launcher of processes and one of containers, as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from local_agent.domain import Unended
from local_agent.ports import Launch, Left, Process, ProcessLauncher, Wanted


class EitherLauncher:
    """Sends each launch to where it belongs: to the processes or to the containers."""

    def __init__(self, processes: ProcessLauncher, containers: ProcessLauncher) -> None:
        self._processes = processes
        self._containers = containers

    async def launch(self, name: str, launch: Launch, *, config_hash: str, port: int) -> Process:
        """See `ProcessLauncher.launch`."""
        kind = self._processes if launch.container is None else self._containers
        return await kind.launch(name, launch, config_hash=config_hash, port=port)

    async def left_running(self, wanted: Mapping[str, Wanted]) -> dict[str, Left]:
        """See `ProcessLauncher.left_running`."""
        processes = await self._processes.left_running(wanted)
        return {**processes, **await self._containers.left_running(wanted)}

    async def reap_orphans(self, keep: Collection[str] = ()) -> list[str]:
        """See `ProcessLauncher.reap_orphans`."""
        processes = await self._processes.reap_orphans(keep)
        return [*processes, *await self._containers.reap_orphans(keep)]

    async def unended(self) -> dict[str, Unended]:
        """See `ProcessLauncher.unended`."""
        return {**await self._processes.unended(), **await self._containers.unended()}
