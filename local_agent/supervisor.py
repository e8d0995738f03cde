"""The owner of all workers: plans, acts, and answers where a model serves.

Only the loop in `run` starts and ends workers. Everybody else says what is wanted, wakes the loop
and waits for a change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup

from local_agent import refusals
from local_agent.admission import Admission
from local_agent.catalog import Entry, catalog
from local_agent.desired import PullMarks, desired
from local_agent.domain import (
    Action,
    Deployment,
    Desired,
    Disable,
    Drain,
    Enable,
    Forget,
    HostFacts,
    ModelId,
    Pull,
    Reset,
    Start,
    Stop,
    Upstream,
    WorkerEvent,
    WorkerState,
    WorkerStatus,
    WorkerView,
)
from local_agent.journal import Journal
from local_agent.lifecycle import ALIVE
from local_agent.memory.estimate import budget_mb
from local_agent.memory.ledger import Ledger
from local_agent.memory.machine import MachineMemory
from local_agent.memory.meter import weights_bytes
from local_agent.memory.outlook import Outlook
from local_agent.memory.residency import Residency
from local_agent.planner import DRAIN_S, next_due, plan
from local_agent.ports import Engine, Process, Wanted
from local_agent.stock import usable
from local_agent.views import worker_view
from local_agent.worker import Surroundings, Worker
from shared.contracts.agents import AgentModel
from shared.kit.clock import Clock, wall_time
from shared.kit.plugins import Plugins


class Supervisor:
    """Owns the workers of one host."""

    def __init__(
        self,
        *,
        engines: Plugins[Engine],
        host: HostFacts,
        around: Surroundings,
        wall: Clock = wall_time,
        drain_s: float = DRAIN_S,
        residency: Residency | None = None,
        on_event: Callable[[WorkerEvent], None] | None = None,
    ) -> None:
        """Take what is shared by all workers; nothing starts before `run`.

        Args:
            engines: the engines by name.
            host: what this host can do.
            around: launcher, prober, clock and limits of the workers.
            wall: wall clock, for events.
            drain_s: how long a busy worker may finish its work before it is restarted or stopped.
            residency: who may be in memory; by default by what the host has.
            on_event: called with each event, at once; must not block or raise.
        """
        self._engines = engines
        self.host = host
        self._around = around
        self.drain_s = drain_s
        self._journal = Journal(wall, on_event)
        self._catalog = catalog((), engines, host)
        self.residency = residency or Residency(
            around.clock, Ledger(budget_mb(host)), weights_bytes
        )
        self.pull_marks = PullMarks(self._wake)
        self._workers: dict[ModelId, Worker] = {}
        self.admission = Admission(
            workers=self._workers,
            residency=self.residency,
            pulling=self.pull_marks.progress,
            journal=self._journal,
            clock=around.clock,
            wake=self._wake,
        )
        self._woken = anyio.Event()
        self._is_running = False
        self._is_stopping = False
        self._stock_taking: anyio.CancelScope | None = None

    # -- what others ask ------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Return a number that grows with each change of a state or of the known models."""
        return self._journal.version

    def resolve(self, name: str) -> ModelId | None:
        """Return the model of an id or alias; None if nobody has this name."""
        return self._catalog.resolve(name)

    def speaks(self, model: ModelId, path: str) -> bool:
        """Tell whether the model's engine serves this route, which is relative to the API base."""
        entry = self._catalog.entries.get(model)
        return entry is None or entry.speaks(path)

    def entry(self, model: ModelId) -> Entry | None:
        """Return what is known of the model; None if nobody has this id."""
        return self._catalog.entries.get(model)

    def is_external(self, model: ModelId) -> bool:
        """Tell whether a server that is not the agent's carries the model."""
        entry = self._catalog.entries.get(model)
        return entry is not None and entry.deployment.external_url is not None

    def models(self) -> tuple[AgentModel, ...]:
        """Return all known models, loaded or not, from memory."""
        found = []
        for model, entry in self._catalog.entries.items():
            worker = self._workers.get(model)
            status = worker.status if worker else WorkerStatus()
            found.append(entry.view(status.state, status.reason))
        return tuple(found)

    def workers(self) -> tuple[WorkerView, ...]:
        """Return what is observed of each worker, removed ones that still live included."""
        now = self._around.clock()
        return tuple(
            worker_view(model, worker, self._catalog.entries.get(model), self.residency, now)
            for model, worker in self._workers.items()
        )

    def events(self, since: int = 0) -> tuple[WorkerEvent, ...]:
        """Return the remembered events with `seq` over `since`, oldest first."""
        return self._journal.since(since)

    async def changed(self, seen: int) -> int:
        """Wait until `version` is over `seen`, and return it."""
        return await self._journal.changed(seen)

    def notify(self) -> None:
        """Wake who waits in `changed`, for news that is not the supervisor's own."""
        self._journal.notify()

    async def ensure_ready(self, model: ModelId, deadline_s: float) -> Upstream:
        """See `Admission.ensure_ready`; requests come by `Admission.admit`."""
        return await self.admission.ensure_ready(model, deadline_s)

    # -- what others want -----------------------------------------------------------------------

    def set_desired(self, deployments: Iterable[Deployment]) -> None:
        """Take the deployments of the configuration, with the weights that are there now.

        A changed one restarts (idle: at once, busy: after its work), a removed one ends.
        """
        self._catalog = catalog(deployments, self._engines, self.host)
        self.residency.set_entries(self._catalog.entries)
        for model in self._catalog.entries:
            if model not in self._workers:
                around = replace(self._around, on_leak=self._leaked)
                self._workers[model] = Worker(model, around, self._observe)
        self.admission.set_entries(self._catalog.entries)
        self._journal.notify()
        self._wake()

    def unload(self, model: ModelId) -> None:
        """Take a model out of memory, after the work it has; the next request loads it again."""
        self.residency.unload(model, "it was unloaded by command")
        self._wake()

    def pin(self, model: ModelId, *, is_pinned: bool) -> None:
        """Keep a model in memory once it is there, or no longer."""
        self.residency.pin(model, is_pinned=is_pinned)
        self._journal.notify()
        self._wake()

    def outlook(self, model: ModelId) -> Outlook:
        """Return what a load would do now.

        Raises:
            ModelNotFound: nobody knows this id.
        """
        if model not in self._catalog.entries:
            raise refusals.unknown(model)
        return self.residency.outlook(model, self._observed())

    def reset(self, model: ModelId) -> None:
        """Forget the failures of a model, so that it is started again.

        Raises:
            ModelNotFound: nobody knows this id.
        """
        worker = self._workers.get(model)
        if worker is None:
            raise refusals.unknown(model)
        if worker.status.state in {WorkerState.BACKOFF, WorkerState.QUARANTINED}:
            worker.reset()
        self._wake()

    def awaits_memory(self) -> bool:
        """Tell whether the machine's memory is of interest: somebody loads, waits, or has not given it back."""
        residency = self.residency
        is_loading = any(
            worker.status.state in {WorkerState.STARTING, WorkerState.LOADING}
            for worker in self._workers.values()
        )
        return is_loading or residency.room.is_short or residency.leftovers.is_any

    async def told_memory(self, memory: MachineMemory | None) -> None:
        """Take the machine's memory as it is now, and give back what ended workers do not hold any more."""
        residency, now = self.residency, self._around.clock()
        residency.room.told(memory, now)
        await residency.leftovers.look(memory, now, self._wake)
        if residency.room.is_short:
            self._wake()

    async def run(self) -> None:
        """Carry all workers until `drain_and_stop` or cancellation; then no process is left."""
        self._is_running = True
        try:
            async with anyio.create_task_group() as group:
                await self._take_stock(group)
                while not self._is_over():
                    self._reconcile(group)
                    await self._until_woken()
        finally:
            self._is_running = False
            self._journal.notify()

    async def drain_and_stop(self, grace_s: float) -> None:
        """Take nothing new, let requests finish for `grace_s`, then end every worker.

        Returns when no process is left, and so does `run`.
        """
        self._is_stopping, self.drain_s = True, grace_s
        self.admission.close()
        if self._stock_taking is not None:
            self._stock_taking.cancel()  # what was left is ended, whatever it would have answered
        self._journal.notify()
        self._wake()
        while self._is_running:
            await self._journal.next()

    async def _take_stock(self, group: TaskGroup) -> None:
        """Take over what an earlier agent left running as it is configured now; end the rest."""
        launcher, wanted = self._around.launcher, self._catalog.wanted()
        prober, limit_s = self._around.prober, self._around.limits.adopting_s
        found: list[ModelId] = []
        with anyio.CancelScope() as self._stock_taking:
            left = await launcher.left_running(wanted)
            found = await usable(left, self._catalog.entries, prober, limit_s)
        # from here to the starts nothing is awaited: what is kept is wanted, and has its memory
        kept = [model for model in found if self._is_kept(model, wanted[model])]
        for model in kept:
            self._start(self._catalog.entries[model].deployment, group)
        await launcher.reap_orphans(kept)
        peak_mb = self.residency.remembered.peak_mb
        await self.residency.leftovers.inherit(launcher.unended, peak_mb)

    def _is_kept(self, model: ModelId, wanted: Wanted) -> bool:
        """Tell whether it is still wanted as it was when it was looked for, and there is room for it."""
        now = self._catalog.wanted().get(model)
        is_same = now is not None and now.config_hash == wanted.config_hash
        return is_same and not self._is_stopping and self.residency.adopt(model)

    # -- the loop -------------------------------------------------------------------------------

    def _reconcile(self, group: TaskGroup) -> None:
        """Act until the plan is empty."""
        while True:
            # first, so that a model that has just been loaded for somebody is busy with them
            self.admission.settle()
            observed = self._observed()
            self.residency.settle(observed)
            now = self._around.clock()
            actions = plan(self._desired(observed), observed, now, drain_s=self.drain_s)
            if not actions:
                return
            for action in actions:
                self._act(action, group)

    def _act(self, action: Action, group: TaskGroup) -> None:
        match action:
            case Start(deployment):
                self._start(deployment, group)
            case Drain(model):
                why = self.residency.why_leaving(model)
                self._workers[model].drain(why or "its requests finish first")
            case Stop(model):
                self._workers[model].stop(self.residency.why_leaving(model))
            case Reset(model):
                self._workers[model].reset()
            case Disable(model, reason):
                self._workers[model].disable(reason)
            case Pull(model):
                self._workers[model].pull()
            case Enable(model):
                self._workers[model].enable()
            case Forget(model):
                del self._workers[model]
                self._journal.notify()

    def _start(self, deployment: Deployment, group: TaskGroup) -> None:
        model = deployment.model
        engine = self._catalog.entries[model].engine
        if engine is not None:  # the planner starts nothing that has a problem
            worker = self._workers[model]
            worker.begin(deployment, self.residency.asker(model))
            group.start_soon(worker.live, deployment, engine, name=f"worker {model}")

    def _desired(self, observed: Mapping[ModelId, WorkerStatus]) -> dict[ModelId, Desired]:
        return desired(
            self._catalog,
            observed,
            self.residency,
            self.pull_marks,
            is_stopping=self._is_stopping,
        )

    def _observed(self) -> dict[ModelId, WorkerStatus]:
        return {model: worker.status for model, worker in self._workers.items()}

    async def _until_woken(self) -> None:
        observed = self._observed()
        dues = (
            next_due(self._desired(observed), observed, drain_s=self.drain_s),
            self.residency.next_due(observed),
            self.admission.next_due(),
        )
        due = min((at for at in dues if at is not None), default=None)
        wait_s = None if due is None else max(0.0, due - self._around.clock())
        with anyio.move_on_after(wait_s):
            await self._woken.wait()
        self._woken = anyio.Event()

    def _is_over(self) -> bool:
        is_any_alive = any(worker.status.state in ALIVE for worker in self._workers.values())
        return self._is_stopping and not is_any_alive

    def _observe(
        self, model: ModelId, before: WorkerStatus, after: WorkerStatus, request_id: str | None
    ) -> None:
        """Record a transition; every worker calls this at each."""
        if before.state is WorkerState.LOADING and after.state is WorkerState.READY:
            self.residency.loaded(model, after.since - before.since)
        memory = self.residency.room.machine.memory
        if memory is not None:
            self.residency.leftovers.wired.observe(model, after.state, memory.wired_mb)
        self._journal.record(model, before, after, request_id)
        self._wake()

    def _leaked(self, model: ModelId, process: Process) -> None:
        self.residency.leftovers.leaked(model, process)

    def _wake(self) -> None:
        self._woken.set()
