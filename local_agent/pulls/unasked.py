"""Pulls that nobody has to ask for: what `AGENT_PULL` names, until it is there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import anyio

from local_agent.catalog import Entry
from local_agent.domain import ModelId
from local_agent.pulls.jobs import JobState, PullJobs
from shared.kit.logs import get_logger

# A hub or an index that fails is not asked again at once, and ever more rarely.
_FIRST_PAUSE_S = 15.0
_LONGEST_PAUSE_S = 600.0


class KnownModels(Protocol):
    """The models that the agent knows now."""

    def resolve(self, name: str) -> ModelId | None:
        """Return the model of an id or alias; None if nobody has this name."""
        ...

    def entry(self, model: ModelId) -> Entry | None:
        """Return what is known of the model; None if nobody has this id."""
        ...


class UnaskedPulls:
    """Starts the pulls of some models and watches each to its good end."""

    def __init__(
        self,
        names: Sequence[str],
        models: KnownModels,
        jobs: PullJobs,
        *,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
    ) -> None:
        """Take what is needed; nothing is started yet.

        Args:
            names: ids or aliases of the models.
            models: what is known of them.
            jobs: carries the pulls.
            sleep: waits so many seconds.
        """
        self._names = names
        self._models = models
        self._jobs = jobs
        self._sleep = sleep

    async def run(self) -> None:
        """Return once all are there; a pull that fails is tried again, one that was stopped is not.

        A name that nobody has yet may come with the next change of the agent's file.
        """
        left = list(dict.fromkeys(self._names))
        unknown = [name for name in left if self._find(name) is None]
        if unknown:
            get_logger("agent").warning("pull_of_unknown_models", names=unknown)
        pause_s = _FIRST_PAUSE_S
        while left:
            entries = {name: entry for name in left if (entry := self._find(name)) is not None}
            for entry in entries.values():
                if not entry.is_pulled:
                    self._jobs.start(entry.deployment.model)
            left = [name for name in left if not await self._is_done(entries.get(name))]
            if left:
                await self._sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _find(self, name: str) -> Entry | None:
        model = self._models.resolve(name)
        return None if model is None else self._models.entry(model)

    async def _is_done(self, entry: Entry | None) -> bool:
        if entry is None or entry.is_pulled:
            return entry is not None
        model = entry.deployment.model
        views = [view async for view in self._jobs.follow(model) if view.is_over]
        if any(view.state is JobState.FAILED for view in views):
            get_logger("agent").warning("pull_failed", model=model, reason=views[-1].error)
            return False
        return bool(views)  # none: its model was taken out of the file meanwhile
