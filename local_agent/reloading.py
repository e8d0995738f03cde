"""Keeps the agent at its YAML file: notices a change, takes a good file, keeps what it has for a bad one.

The file is looked at each second; nothing else notices all the ways in which editors and tools replace
files, on every file system.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from local_agent.config import AgentConfig
from local_agent.config_file import ConfigError
from local_agent.domain import Deployment
from local_agent.engines import choose_engine
from shared.kit.logs import get_logger

_EVERY_S = 1.0
_LOOKS_BETWEEN_TRIES = 10
_OF_MODELS = {"models", "known_models"}

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a reload changed: models by id, and the other fields by name.

    `restarting` are those of `changed` whose workers can't go on as they are. `notes` say what of it does
    not count yet, and what to do.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    restarting: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_values(self) -> dict[str, list[str]]:
        """Return them as lists by name."""
        return {name: list(value) for name, value in asdict(self).items()}

    def __bool__(self) -> bool:
        return any(self.as_values().values())


@dataclass(frozen=True, slots=True)
class Taken:
    """A configuration, and what the supervisor was given for it."""

    config: AgentConfig
    deployments: tuple[Deployment, ...]


def compare(before: Taken, after: Taken, *, overridden: Mapping[str, str]) -> Changes:
    """Return what is different.

    Args:
        before: what was in use.
        after: what is in use now.
        overridden: which variable of the environment beats a field.
    """
    old, new = _by_id(before), _by_id(after)
    both = [model for model in new if model in old]
    changed = tuple(model for model in both if old[model] != new[model])
    settings = tuple(
        name
        for name in sorted(AgentConfig.model_fields)
        if name not in _OF_MODELS and getattr(before.config, name) != getattr(after.config, name)
    )
    return Changes(
        added=tuple(model for model in new if model not in old),
        removed=tuple(model for model in old if model not in new),
        changed=changed,
        restarting=tuple(
            model for model in changed if _hash(old[model][1]) != _hash(new[model][1])
        ),
        settings=settings,
        notes=(
            *(
                f"memory of {model} counts from its next load on"
                for model in changed
                if old[model][1].memory_mb != new[model][1].memory_mb
            ),
            *(
                f"{overridden[name]} is set and beats {name}: unset it and restart the agent"
                for name in settings
                if name in overridden
            ),
        ),
    )


class Reloader:
    """Holds the agent to its file; `problem` says why a newer one is not in use, None if it is."""

    def __init__(
        self,
        path: Path,
        *,
        read: Callable[[], AgentConfig],
        take: Callable[[AgentConfig], Changes],
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Take the file as it is now for the one that is in use.

        Args:
            path: the file; it and its folder need not exist.
            read: reads it; runs in a thread, and raises `ConfigError`.
            take: puts a configuration to use.
            sleep: waits between looks.
        """
        self.problem: str | None = None
        self._path = path
        self._read = read
        self._take = take
        self._sleep = sleep
        self._log = get_logger("agent")
        self._in_use = self._last = self._tried = _stamp(path)
        self._looks = 0
        self._is_over = False
        self._lock = anyio.Lock()

    async def run(self) -> None:
        """Look until cancelled; a defect here must not end what clients use."""
        while True:
            await self._sleep(_EVERY_S)
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - whatever it is, it is logged and tried again
                self._log.exception("config_look_failed")

    async def look(self) -> None:
        """Reload a file that has changed and has not been written to since the last look.

        A file that was bad is tried again with each change, and now and then: what kept it from being
        read may be gone.
        """
        stamp = await anyio.to_thread.run_sync(_stamp, self._path)
        is_settled, self._last = stamp == self._last, stamp
        self._looks += 1
        is_due = self.problem is not None and self._looks >= _LOOKS_BETWEEN_TRIES
        if is_settled and (stamp != self._tried or is_due):
            await self._try()

    async def reload(self) -> Changes:
        """Read configuration and weights anew, and put them to use.

        Raises:
            ConfigError: the file is not good; the present configuration stays.
        """
        async with self._lock:
            try:
                config, stamp = await anyio.to_thread.run_sync(self._read_stamped)
            except ConfigError as error:
                self._refuse(str(error))
                raise
            if self._is_over:
                return Changes()
            changes = self._take(config)
            was_bad, self.problem = self.problem is not None, None
            self._in_use = stamp
            if changes or was_bad:
                self._log.info("config_reloaded", file=self._path.name, **changes.as_values())
            return changes

    def end(self) -> None:
        """Take nothing from now on: the agent is stopping."""
        self._is_over = True

    async def _try(self) -> None:
        try:
            await self.reload()
        except ConfigError:
            return  # said by `problem` and the log

    def _read_stamped(self) -> tuple[AgentConfig, Stamp | None]:
        """Read; the stamp is from before, so that what is written meanwhile is noticed later."""
        self._tried, self._looks = _stamp(self._path), 0
        if self._tried is None and self._in_use is not None:
            raise ConfigError(
                self._path.name,
                "is gone; put it back, or restart the agent to go on with the known models",
            )
        return self._read(), self._tried

    def _refuse(self, problem: str) -> None:
        if problem != self.problem:
            self._log.warning("config_refused", reason=problem)
        self.problem = problem


def _stamp(path: Path) -> Stamp | None:
    """Return what changes whenever a file does; None if there is none, or none that may be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _by_id(taken: Taken) -> dict[str, tuple[Any, Deployment]]:
    pairs = zip(taken.config.models, taken.deployments, strict=True)
    return {model.id: (model, deployment) for model, deployment in pairs}


def _hash(deployment: Deployment) -> str:
    """Return the hash by which the supervisor decides whether to restart."""
    return replace(deployment, engine=choose_engine(deployment)).config_hash
