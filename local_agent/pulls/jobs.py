"""Pulls as jobs of the running agent: one per model, a few at a time, each to be watched and ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from enum import Enum
from functools import partial

from local_agent.desired import PullMarks
from local_agent.domain import ModelId
from local_agent.pulls.puller import Pulled
from local_agent.weights.errors import PullError
from local_agent.weights.progress import OnProgress, Progress
from shared.kit.logs import get_logger

Pull = Callable[[ModelId, OnProgress], Awaitable[Pulled]]

_AT_ONCE = 2


class JobState(str, Enum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """One job at a moment; `error` says why it failed or was cancelled, `result` what it gave."""

    model: ModelId
    state: JobState
    progress: Progress | None = None
    error: str | None = None
    result: Pulled | None = None

    @property
    def is_over(self) -> bool:
        """Tell whether nothing more will come."""
        return self.state not in {JobState.QUEUED, JobState.RUNNING}


class _Job:
    def __init__(self, model: ModelId) -> None:
        self.view = JobView(model=model, state=JobState.QUEUED)
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False
        self._news = asyncio.Event()

    def begin(self, task: asyncio.Task[None]) -> None:
        """Be carried by this task."""
        self._task = task

    def cancel(self) -> None:
        """Ask it to end, once: a second time would cut short how it clears away."""
        if self._task is not None and not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel()

    def show(self, view: JobView) -> None:
        self.view = view
        self._news.set()
        self._news = asyncio.Event()

    def report(self, progress: Progress) -> None:
        self.show(JobView(model=self.view.model, state=JobState.RUNNING, progress=progress))

    def end(
        self, state: JobState, *, error: str | None = None, result: Pulled | None = None
    ) -> None:
        model, progress = self.view.model, self.view.progress
        self.show(JobView(model=model, state=state, progress=progress, error=error, result=result))

    async def changed(self) -> None:
        await self._news.wait()


class PullJobs:
    """Owns the jobs; the last one of each model is remembered."""

    def __init__(
        self,
        pull: Pull,
        marks: PullMarks,
        on_pulled: Callable[[], None],
        *,
        at_once: int = _AT_ONCE,
    ) -> None:
        """Start without any.

        Args:
            pull: pulls a model to its end, or raises `PullError`; cancelled to stop it.
            marks: hears of each job's begin and end.
            on_pulled: makes the agent look at its weights anew.
            at_once: how many pulls run at the same time; others wait.
        """
        self._pull = pull
        self._marks = marks
        self._on_pulled = on_pulled
        self._slots = asyncio.Semaphore(at_once)
        self._jobs: dict[ModelId, _Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopped = False

    def views(self) -> tuple[JobView, ...]:
        """Return the last job of each model."""
        return tuple(job.view for job in self._jobs.values())

    def view(self, model: ModelId) -> JobView | None:
        """Return the model's last job."""
        job = self._jobs.get(model)
        return None if job is None else job.view

    def start(self, model: ModelId) -> JobView:
        """Pull the model, or join the job that does so already."""
        job = self._jobs.get(model)
        if job is not None and not job.view.is_over:
            return job.view
        job = self._jobs[model] = _Job(model)
        self._marks.begin(model)
        task = asyncio.create_task(self._carry(job), name=f"pull {model}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._ended(job))
        job.begin(task)
        if self._is_stopped:
            job.cancel()
        return job.view

    async def follow(self, model: ModelId) -> AsyncIterator[JobView]:
        """Yield the model's job as it goes, its end last; nothing if there is none."""
        job = self._jobs.get(model)
        while job is not None:
            view = job.view
            yield view
            if view.is_over:
                return
            if job.view is view:
                await job.changed()

    async def cancel(self, model: ModelId) -> JobView | None:
        """Stop the model's job, and return it once it has ended; what has come is kept."""
        job = self._jobs.get(model)
        if job is None:
            return None
        job.cancel()
        while not job.view.is_over:
            await job.changed()
        return job.view

    def keep(self, models: Collection[ModelId]) -> None:
        """Stop and forget the jobs of other models than these: they are configured no more."""
        for model in [model for model in self._jobs if model not in models]:
            self._jobs.pop(model).cancel()

    def stop(self) -> None:
        """Take no new jobs and stop all: the agent ends."""
        self._is_stopped = True
        for job in self._jobs.values():
            job.cancel()

    async def aclose(self) -> None:
        """Stop all jobs, and return once they have ended."""
        self.stop()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _carry(self, job: _Job) -> None:
        model = job.view.model
        try:
            async with self._slots:
                job.show(JobView(model=model, state=JobState.RUNNING))
                result = await self._pull(model, partial(self._report, job))
        except PullError as error:
            self._end(job, JobState.FAILED, error=str(error))
        except Exception:  # noqa: BLE001 - whatever it is, it must not be silent
            get_logger("agent").exception("pull_failed", model=model)
            self._end(job, JobState.FAILED, error="a defect of the agent; its log says more")
        else:
            self._on_pulled()
            self._end(job, JobState.DONE, result=result)

    def _report(self, job: _Job, progress: Progress) -> None:
        job.report(progress)
        if self._jobs.get(job.view.model) is job:
            self._marks.report(job.view.model, progress)

    def _ended(self, job: _Job) -> None:
        """Tell that it was cancelled: a task that never took its first step can't say so itself."""
        if not job.view.is_over:
            why = "the agent was stopped" if self._is_stopped else "it was stopped"
            self._end(
                job, JobState.CANCELLED, error=f"{why}; the same command goes on where it was"
            )

    def _end(
        self,
        job: _Job,
        state: JobState,
        *,
        error: str | None = None,
        result: Pulled | None = None,
    ) -> None:
        """Take the mark away, then tell who watches, so that they find it gone."""
        model = job.view.model
        if self._jobs.get(model) in {None, job}:  # else it was removed, came back, has another job
            self._marks.end(model, error if state is JobState.FAILED else None)
        job.end(state, error=error, result=result)
