"""Pulls that nobody has to ask for: what `AGENT_PULL` names, until it is there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Protocol

import anyio

from local_agent.catalog import Entry
from local_agent.domain import ModelId
from local_agent.pulls.jobs import JobState, PullJobs
from shared.kit.logs import get_logger

# A hub or an index that fails is not asked again at once, and ever more rarely.
_FIRST_PAUSE_S = 15.0
_LONGEST_PAUSE_S = 600.0


class _End(Enum):
    """How a pull has ended: nothing is left to do, or it failed, or its model is known no more."""

    SETTLED = "settled"
    FAILED = "failed"
    FORGOTTEN = "forgotten"


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

        Nobody waits for another's pull. A name that nobody has yet, or any more, may come with a change of
        the agent's file, and is pulled then.
        """
        names = list(dict.fromkeys(self._names))
        unknown = [name for name in names if self._find(name) is None]
        if unknown:
            get_logger("agent").warning("pull_of_unknown_models", names=unknown)
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(self._see_to, name)

    async def _see_to(self, name: str) -> None:
        """Return once the model of this name is there, or somebody has stopped its pull."""
        pause_s = _FIRST_PAUSE_S
        while True:
            entry = self._find(name)
            end = None if entry is None else await self._end(entry)
            if end is _End.SETTLED:
                return
            await self._sleep(pause_s)
            # looking for a name costs nothing
            is_rarer = end is _End.FAILED
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if is_rarer else _FIRST_PAUSE_S

    def _find(self, name: str) -> Entry | None:
        model = self._models.resolve(name)
        return None if model is None else self._models.entry(model)

    async def _end(self, entry: Entry) -> _End:
        """Pull the model, if it is not there, and return how that has ended."""
        if entry.is_pulled:
            return _End.SETTLED
        model = entry.deployment.model
        last = self._jobs.start(model)
        async for view in self._jobs.follow(model):
            last = view
        if last.state is JobState.FAILED:
            get_logger("agent").warning("pull_failed", model=model, reason=last.error)
            return _End.FAILED
        # the job of a model that was taken out of the file is forgotten; one that was stopped is not
        is_forgotten = last.state is JobState.CANCELLED and self._jobs.view(model) is not last
        return _End.FORGOTTEN if is_forgotten else _End.SETTLED
