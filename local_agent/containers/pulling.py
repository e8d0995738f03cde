"""Pulls what a worker in a container needs: its image, and the weights into its volume."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from local_agent.containers.causes import DISK_FULL
from local_agent.containers.launcher import AGENT, PULL, off_loop
from local_agent.containers.layers import Layers
from local_agent.containers.messages import reports_of
from local_agent.domain import ModelId, PulledImage
from local_agent.ports import ContainerClient, ContainerError, ContainerSpec
from local_agent.process.records import file_stem
from local_agent.weights.errors import SourceFailed, SourceNotFound
from local_agent.weights.following import PROGRAM, Disk, Follower, Result, unless_stalled
from local_agent.weights.progress import Meter, OnProgress, Phase, reported
from shared.kit.clock import Clock, monotonic

_ALL_LINES = 100_000


class ContainerPuller:
    """Pulls through the container engine; the weights come by a short-lived container of the image."""

    def __init__(
        self,
        *,
        agent_id: str,
        connect: Callable[[], ContainerClient],
        run_dir: Path,
        secrets: Mapping[str, str],
        clock: Clock = monotonic,
        limit_s: float = 20.0,
        stall_s: float = 300.0,
        report_every_s: float = 0.25,
    ) -> None:
        """Take what is needed later; nothing is connected before the first pull.

        Args:
            agent_id: whose containers these are; its next start removes what was left.
            connect: finds the engine; blocks, and raises `ContainerError`.
            run_dir: where a mark lies once there may be containers.
            secrets: goes into the container's environment, and nowhere else.
            clock: monotonic, for rates.
            limit_s: how long a call to the engine may take that should be short.
            stall_s: a pull that gets no byte for so long has failed; there is no other limit.
            report_every_s: seconds between two reports of progress.
        """
        self._agent_id = agent_id
        self._connect = connect
        self._mark = run_dir / "containers"
        self._secrets = dict(secrets)
        self._clock = clock
        self._limit_s = limit_s
        self._stall_s = stall_s
        self._report_every_s = report_every_s

    async def pull(
        self, model: ModelId, spec: ContainerSpec, on_progress: OnProgress
    ) -> tuple[PulledImage, bool]:
        """Make image and weights be there; what is there already is not pulled again.

        Returns:
            What is there, and whether it was compared with what the hub tells.

        Cancel the task to stop; the next pull goes on with what has come.

        Args:
            model: whose container it is.
            spec: with an image and a repository.
            on_progress: called about four times a second, in the event loop.

        Raises:
            PullError: by cause.
        """
        meter = Meter(self._clock)
        meter.name_source(spec.image)
        async with reported(meter, on_progress, self._report_every_s):
            size, is_checked = await self._with_engine(partial(self._pull, model, spec, meter))
            meter.begin(Phase.DONE, total=size, done=size)
        return PulledImage(image=spec.image, repo=spec.repo, size_bytes=size), is_checked

    async def remove(self, model: ModelId, spec: ContainerSpec) -> int:
        """Remove the repository from the volume; return how many bytes were there.

        Raises:
            PullError: by cause.
        """

        async def remove(client: ContainerClient) -> Result:
            if not await self._has_image(client, spec):
                volumes = " ".join(spec.volumes)
                raise SourceNotFound(
                    f"the image {spec.image}, in which the weights are removed, is not on this host:"
                    f" pull the model again, or remove all of the volume: docker volume rm {volumes}"
                )
            return await self._run(client, model, spec, "remove", Meter(self._clock))

        size, _ = await self._with_engine(remove)
        return size

    async def _with_engine(self, work: Callable[[ContainerClient], Awaitable[Result]]) -> Result:
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        self._mark.touch()
        try:
            client = await off_loop(self._connect, self._limit_s)
            try:
                return await work(client)
            finally:
                client.close()
        except ContainerError as error:
            raise SourceFailed(error.strerror) from error

    async def _pull(
        self, model: ModelId, spec: ContainerSpec, meter: Meter, client: ContainerClient
    ) -> Result:
        if not await self._has_image(client, spec):
            await self._pull_image(client, spec.image, meter)
        meter.name_source(f"hf:{spec.repo}")
        return await self._run(client, model, spec, "pull", meter)

    async def _has_image(self, client: ContainerClient, spec: ContainerSpec) -> bool:
        return await off_loop(partial(client.has_image, spec.image), self._limit_s)

    async def _pull_image(self, client: ContainerClient, image: str, meter: Meter) -> None:
        layers = Layers()
        phase = Phase.DOWNLOADING
        meter.begin(phase)
        with reports_of(partial(client.pull_image, image)) as messages:
            while (
                message := await unless_stalled(messages.next, meter, self._stall_s)
            ) is not None:
                layers.take(message)
                if layers.is_downloaded and phase is Phase.DOWNLOADING:
                    phase = Phase.UNPACKING
                    meter.begin(phase, total=layers.total)
                is_loading = phase is Phase.DOWNLOADING
                meter.limit(layers.total)
                meter.reach(layers.downloaded if is_loading else layers.unpacked)

    async def _run(
        self, client: ContainerClient, model: ModelId, spec: ContainerSpec, task: str, meter: Meter
    ) -> Result:
        """Run the program to its end, and return what it tells."""
        labels = {AGENT: self._agent_id, PULL: model}
        for left in await off_loop(partial(client.find, labels), self._limit_s):
            await off_loop(partial(client.stop, left.id, 0), self._limit_s)
        start = partial(
            client.run_program,
            f"iir-{self._agent_id[:8]}-pull-{file_stem(model)}",
            spec,
            PROGRAM.read_text(encoding="utf-8"),
            env={"IIR_TASK": task, "IIR_REPO": spec.repo, **self._secrets},
            labels=labels,
        )
        # its start is waited for even if the pull is cancelled: it would belong to nobody
        starting = asyncio.ensure_future(off_loop(start, self._limit_s))
        try:
            container = await asyncio.shield(starting)
            return await self._follow(client, container, spec, meter)
        finally:
            with suppress(ContainerError):
                await off_loop(partial(client.stop, await starting, 0), self._limit_s)

    async def _follow(
        self, client: ContainerClient, container: str, spec: ContainerSpec, meter: Meter
    ) -> Result:
        follower = Follower(spec.repo, meter, _DISK, self._stall_s)
        with reports_of(partial(client.follow, container, _ALL_LINES)) as chunks:
            found = await follower.result(chunks.next)
        if found is not None:
            return found
        view = await off_loop(partial(client.look, container), self._limit_s)
        if view is None:
            raise SourceFailed("the container that pulled was removed by somebody else; pull again")
        raise SourceFailed(f"the container that pulled has failed: {follower.tail}")


_DISK = Disk(
    small=(
        "not enough disk space in the container engine: {needed} needed, {free} free; free some:"
        " docker system df"
    ),
    full=DISK_FULL,
)
