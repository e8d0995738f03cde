"""What should be true of each model, from what is configured, asked for and pulled."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from local_agent.catalog import Catalog, Entry
from local_agent.domain import Desired, ModelId, WorkerStatus
from local_agent.memory.residency import Residency
from local_agent.weights.progress import Progress


class PullMarks:
    """What the pull jobs say of the models: which are being pulled, how far they are, why a pull failed."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        """Start without any; `on_change` is called at each news and must not block."""
        self._on_change = on_change
        self._pulling: dict[ModelId, Progress | None] = {}
        self._causes: dict[ModelId, str] = {}

    def begin(self, model: ModelId) -> None:
        """Say that a job pulls the model."""
        self._pulling[model] = None
        self._causes.pop(model, None)
        self._on_change()

    def report(self, model: ModelId, progress: Progress) -> None:
        """Say how far the job is; nothing depends on that but what is shown."""
        if model in self._pulling:
            self._pulling[model] = progress

    def end(self, model: ModelId, cause: str | None = None) -> None:
        """Say that the job has ended; `cause` says why it failed."""
        self._pulling.pop(model, None)
        if cause is not None:
            self._causes[model] = cause
        self._on_change()

    def is_pulling(self, model: ModelId) -> bool:
        """Tell whether a job pulls the model."""
        return model in self._pulling

    def progress(self, model: ModelId) -> Progress | None:
        """Return how far the job is; None while it waits for others, and if there is none."""
        return self._pulling.get(model)

    def problem(self, entry: Entry) -> str | None:
        """Return why the model can't run; of weights that are not there, why they are not."""
        cause = None if entry.is_pulled else self._causes.get(entry.deployment.model)
        return entry.problem if cause is None else f"its pull failed: {cause}"


def desired(
    catalog: Catalog,
    observed: Mapping[ModelId, WorkerStatus],
    residency: Residency,
    marks: PullMarks,
    *,
    is_stopping: bool,
) -> dict[ModelId, Desired]:
    """Return what should be true of each known model.

    Args:
        catalog: the known models.
        observed: the status of each of them.
        residency: who may be in memory.
        marks: who is being pulled.
        is_stopping: whether the agent ends, which wants nothing.
    """
    return {
        model: Desired(
            deployment=entry.deployment,
            is_wanted=not is_stopping and _is_wanted(entry, observed[model], residency),
            is_patient=not is_stopping and residency.why_leaving(model) is not None,
            is_pulling=marks.is_pulling(model),
            problem=marks.problem(entry),
        )
        for model, entry in catalog.entries.items()
    }


def _is_wanted(entry: Entry, status: WorkerStatus, residency: Residency) -> bool:
    """An external server is always watched: somebody else decides whether it runs."""
    deployment = entry.deployment
    is_external = deployment.external_url is not None
    return residency.is_wanted(deployment.model, status) or is_external
