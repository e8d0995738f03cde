"""Gives a model what it needs: a file of weights, a repository, or a container's image and repository."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from local_agent.choice import choose
from local_agent.config import AgentConfig
from local_agent.config_file import to_deployments
from local_agent.containers.pulling import ContainerPuller
from local_agent.domain import HostFacts, ModelId
from local_agent.engines import ENGINES
from local_agent.ports import ContainerSpec
from local_agent.pulls.repository import RepositoryPuller
from local_agent.weights.errors import NoSource, PullError
from local_agent.weights.files import disk_errors, locked
from local_agent.weights.job import Puller
from local_agent.weights.progress import OnProgress
from local_agent.weights.source import LocalSource, Source
from local_agent.weights.store import WeightStore
from shared.kit.clock import Clock, wall_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """What a model needs: one of these sources, a repository or, in a container, an image and a repository."""

    model: ModelId
    sources: tuple[Source, ...] = ()
    repo: str | None = None
    container: ContainerSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What a pull gave. `place` is for people: a file or a folder below `$IIR_HOME`, or a volume.

    `is_checked` says whether there was a checksum to compare with, None where that was not noted;
    `is_link` whether it is a file of the user's, used where it is.
    """

    place: str
    size_bytes: int
    is_checked: bool | None = None
    is_link: bool = False


class NotToPull(PullError):
    """The model can't run here, so nothing is pulled for it."""


def needed(config: AgentConfig, store: WeightStore, host: HostFacts, model: ModelId) -> Needed:
    """Return what a configured model needs.

    Args:
        config: the agent's file.
        store: the weights on this host.
        host: what it can do, and which images it allows.
        model: id of the model.

    Raises:
        NoSource: it needs no weights, or nobody knows it.
        NotToPull: its engine can't run it here.
    """
    found = config.find(model)
    if found is None:
        raise NoSource(f"no model is named {model}")
    (deployment,) = (each for each in to_deployments(config, store) if each.model == model)
    name = choose(deployment, host).engine
    engine = ENGINES[name]
    if not engine.needs_weights(deployment):
        raise NoSource(f"{model} needs no weights (engine {name})")
    if found.sources:
        return Needed(model=model, sources=found.sources)
    problem = engine.unsupported_reason(host, deployment)
    if problem is not None:
        raise NotToPull(problem)
    if found.repository is not None:
        return Needed(model=model, repo=found.repository)
    launch = engine.launch(deployment, 0)
    return Needed(model=model, container=None if launch is None else launch.container)


def to_remove(config: AgentConfig, store: WeightStore, host: HostFacts, model: ModelId) -> Needed:
    """Return what may have been pulled for a model; like `needed`, but what lies here needs no engine.

    Raises:
        NoSource: it needs no weights, or nobody knows it.
        NotToPull: its engine can't run it here, and is needed for that.
    """
    found = config.find(model)
    if found is not None and found.repository is not None:
        return Needed(model=model, repo=found.repository)
    return needed(config, store, host, model)


class ModelPuller:
    """Pulls and removes what models need. Holds no state between pulls."""

    def __init__(
        self,
        root: Path,
        *,
        files: Puller,
        repositories: RepositoryPuller,
        containers: ContainerPuller,
        now: Clock = wall_time,
    ) -> None:
        """Pull below `root`, usually `$IIR_HOME/models`.

        Args:
            root: the weight store's folder.
            files: pulls files of weights.
            repositories: pulls repositories for processes of this host.
            containers: pulls into the container engine.
            now: wall clock, for what is noted.
        """
        self._store = WeightStore(root)
        self._root = root
        self._files = files
        self._repositories = repositories
        self._containers = containers
        self._now = now

    async def pull(self, wanted: Needed, on_progress: OnProgress) -> Pulled:
        """Make it be there; what is there already is not pulled again.

        Cancel the task to stop; the next pull goes on where it was.

        Raises:
            PullError: by cause.
        """
        if wanted.container is not None:
            return await self._pull_container(wanted.model, wanted.container, on_progress)
        if wanted.repo is not None:
            size, is_checked = await self._repositories.pull(wanted.repo, on_progress)
            place = self._shown(self._store.hub.folder(wanted.repo))
            return Pulled(place=place, size_bytes=size, is_checked=is_checked)
        path = await self._files.pull(wanted.model, wanted.sources, on_progress)
        manifest = self._store.manifest(wanted.model)
        return Pulled(
            place=self._shown(path),
            size_bytes=path.stat().st_size,
            is_checked=None if manifest is None else manifest.is_checked,
            is_link=path.is_symlink() and any(isinstance(s, LocalSource) for s in wanted.sources),
        )

    async def remove(self, wanted: Needed) -> bool:
        """Remove what was pulled, broken pulls included; tell whether there was anything.

        A repository goes for all models that share it.

        Raises:
            PullError: by cause.
        """
        model, spec = wanted.model, wanted.container
        if wanted.repo is not None:
            return await self._repositories.remove(wanted.repo) > 0
        if spec is None:
            return self._store.remove(model)
        with disk_errors(), locked(self._store.lock_path(model), model):
            is_noted = self._store.pulled(model) is not None
            removed = await self._containers.remove(model, spec)
            self._store.forget_repo(spec.repo)
        return removed > 0 or is_noted

    def _shown(self, path: Path) -> str:
        return f"$IIR_HOME/{path.relative_to(self._root.parent)}"

    async def _pull_container(
        self, model: ModelId, spec: ContainerSpec, on_progress: OnProgress
    ) -> Pulled:
        with disk_errors(), locked(self._store.lock_path(model), model):
            pulled, is_checked = await self._containers.pull(model, spec, on_progress)
            when = datetime.fromtimestamp(self._now(), tz=timezone.utc)
            self._store.record_pulled(model, pulled, when.isoformat(timespec="seconds"))
        volumes = ", ".join(spec.volumes)
        return Pulled(
            place=f"volume {volumes}", size_bytes=pulled.size_bytes, is_checked=is_checked
        )
