"""Ten thousand random events around the queues, in virtual time: nobody is lost, nothing leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from local_agent.domain import Deployment, ModelId
from local_agent.lifecycle import ALIVE, FailureRule
from shared.http.errors import ApiError

if TYPE_CHECKING:
    from tests.local_agent.conftest import Stage

BUDGET = 100
EVENTS = 10_000
KINDS = {
    "request": 36,
    "finish": 32,
    "leave": 6,
    "crash": 1,
    "time": 18,
    "pin": 1,
    "unpin": 3,
    "unload": 2,
    "resize": 1,
}


class Request:
    """One request: how it came to its end is told once."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.scope = anyio.CancelScope()
        self.ends: list[str] = []


class Chaos:
    """Clients with deadlines and priorities, crashes, commands and time, at random."""

    def __init__(self, stage: Stage, seed: int) -> None:
        stage.limit(health_every_s=0.05)
        stage.rule = FailureRule(first_s=1.0, most_s=5.0, quarantine_at=10**6)
        self.rng = Random(seed)
        self.stage = stage
        self.deployments = [self._deployment(n) for n in range(5)]
        self.models = [deployment.model for deployment in self.deployments]
        self.supervisor = stage.supervisor(*self.deployments)
        residency = self.supervisor.residency
        residency.ledger.set_budget(BUDGET)
        residency.min_residency_s, residency.swap_after_s = 5, 15
        self.requests: list[Request] = []
        self.open: dict[Request, None] = {}
        self.busy: Counter[int | None] = Counter()
        self.crashed: set[int] = set()

    def _deployment(self, n: int, slots: int = 2) -> Deployment:
        return replace(
            self.stage.deployment(f"m{n}", options={"slots": str(slots)}),
            memory_mb=25 + 15 * n,
            ttl_s=60.0 if n % 2 else None,
            preload=n == 0,
            priority=n % 3,
            max_queue=4,
            queue_max_wait_s=20.0,
        )

    @contextmanager
    def _holding(self, pid: int | None) -> Iterator[None]:
        """Count who is in flight to a process; it may have crashed before they were sent."""
        self.busy[pid] += 1
        try:
            yield
        finally:
            self.busy[pid] -= 1

    async def serve(self, request: Request) -> None:
        """Carry a request to its end, whatever that is."""
        model, rng = self.rng.choice(self.models), self.rng
        wait_s = rng.choice([None, None, 0.0, rng.uniform(0, 30)])
        priority, load_wait_s = rng.choice([-1, 0, 0, 1]), rng.uniform(5, 200)
        how = "left"
        with request.scope:
            how = await self._served(request, model, load_wait_s, wait_s, priority)
        request.ends.append(how)
        del self.open[request]

    async def _served(
        self,
        request: Request,
        model: ModelId,
        load_wait_s: float,
        wait_s: float | None,
        priority: int,
    ) -> str:
        try:
            place = await self.supervisor.admission.admit(
                model, load_wait_s=load_wait_s, wait_s=wait_s, priority=priority
            )
        except ApiError as error:
            return error.code
        view = next(one for one in self.supervisor.workers() if one.model == model)
        with place, self._holding(view.pid):
            await request.done.wait()
        return "served"

    def step(self, group: anyio.abc.TaskGroup) -> None:
        """Let one thing happen."""
        what = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
        if what == "request" and len(self.open) < 40:
            request = Request()
            self.requests.append(request)
            self.open[request] = None
            group.start_soon(self.serve, request)
        elif what in {"finish", "leave"} and self.open:
            request = self.rng.choice(list(self.open))
            request.done.set() if what == "finish" else request.scope.cancel()
        elif what == "crash" and self.stage.launcher.alive():
            process = self.rng.choice(self.stage.launcher.alive())
            self.crashed.add(process.pid)
            process.end(-9)
        elif what == "time":
            self.pass_time(self.rng.uniform(0, 4))
        elif what in {"pin", "unpin"}:
            self.supervisor.pin(self.rng.choice(self.models), is_pinned=what == "pin")
        elif what == "unload":
            self.supervisor.unload(self.rng.choice(self.models))
        elif what == "resize":
            n = self.rng.randrange(len(self.deployments))
            self.deployments[n] = self._deployment(n, slots=self.rng.choice([1, 2, 3]))
            self.supervisor.set_desired(self.deployments)

    def pass_time(self, seconds: float) -> None:
        """Let time go by, and make the loop look at the clock, which nobody tells it of."""
        self.stage.clock.now += seconds
        self.supervisor.set_desired(self.deployments)

    def check(self) -> None:
        """Check what has to hold at any moment."""
        views = self.supervisor.workers()
        assert self.supervisor.residency.ledger.held_mb <= BUDGET
        alive = {view.model for view in views if view.state in ALIVE}
        assert alive <= set(self.supervisor.residency.ledger.held), "what runs is accounted for"
        for view in views:
            assert view.in_flight >= 0
            assert 0 <= view.waiting <= 4
        assert sum(view.in_flight + view.waiting for view in views) <= len(self.open)
        for pid in [pid for pid, count in self.busy.items() if count and pid is not None]:
            process = self.stage.launcher.processes[pid - 100]  # as the launcher numbers them
            assert process.code is None or pid in self.crashed, "in-flight work was killed"


@pytest.mark.no_cover  # random: what it reaches is tested by name elsewhere
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))]
)
async def test_ten_thousand_events_end_consistent(stage: Stage, seed: int) -> None:
    chaos = Chaos(stage, seed)
    supervisor = chaos.supervisor
    async with anyio.create_task_group() as loop:
        loop.start_soon(supervisor.run)
        async with anyio.create_task_group() as group:
            for _ in range(EVENTS):
                chaos.step(group)
                for _ in range(chaos.rng.randrange(1, 4)):
                    await anyio.lowlevel.checkpoint()
                    chaos.check()
            for model in chaos.models:
                supervisor.pin(model, is_pinned=False)
            with anyio.fail_after(20):
                while chaos.open:
                    for request in chaos.open:
                        request.done.set()
                    chaos.pass_time(1)
                    chaos.check()
                    await anyio.sleep(0.001)
        assert all(len(request.ends) == 1 for request in chaos.requests), "each ends exactly once"
        assert [(v.in_flight, v.waiting) for v in supervisor.workers()] == [(0, 0)] * 5
        for model in chaos.models:
            supervisor.unload(model)
        with anyio.fail_after(5):
            while stage.launcher.alive() or supervisor.residency.ledger.held:
                await anyio.sleep(0.001)
        loop.cancel_scope.cancel()
    assert len(stage.launcher.processes) > 50
    ends = Counter(request.ends[0] for request in chaos.requests)
    assert ends["served"] > 200, ends
    assert min(ends[how] for how in ("left", "queue_full")) > 50, ends
    assert min(ends[how] for how in ("queue_timeout", "model_loading", "worker_gone")) > 5, ends
