"""Models that do not fit together, under clients, crashes, commands and time at random."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from local_agent.lifecycle import ALIVE, FailureRule
from shared.http.errors import ApiError

if TYPE_CHECKING:
    from tests.local_agent.conftest import FakeProcess, Stage

from tests.local_agent.residency import (
    BUDGET,
    look,
    running,
    sized,
    states,
    supervised,
    until,
    wake,
)


class Chaos:
    """Clients, crashes, commands and time, at random, and what must hold after each of them."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.rng = Random(seed)
        self.stage = stage
        stage.rule = FailureRule(first_s=1.0, most_s=5.0, quarantine_at=10**6)
        self.deployments = [
            sized(stage, f"m{n}", 15 + 12 * n, ttl_s=60.0 if n % 2 else None, preload=n == 0)
            for n in range(6)
        ]
        self.models = [deployment.model for deployment in self.deployments]
        self.supervisor = supervised(stage, *self.deployments, min_residency_s=5)
        self.requests: list[tuple[anyio.Event, anyio.CancelScope]] = []
        self.busy: dict[int, int] = {}
        self.crashed: set[int] = set()
        self.served = 0
        self.refused = 0

    @contextmanager
    def _holding(self, process: FakeProcess) -> Iterator[None]:
        self.busy[process.pid] = self.busy.get(process.pid, 0) + 1
        try:
            yield
        finally:
            self.busy[process.pid] -= 1

    async def request(self) -> None:
        done, scope = anyio.Event(), anyio.CancelScope()
        entry = (done, scope)
        self.requests.append(entry)
        model = self.rng.choice(self.models)
        with scope:
            try:
                await self.supervisor.ensure_ready(model, 1000)
            except ApiError:
                self.refused += 1
                self.requests.remove(entry)
                return
            view = next(one for one in self.supervisor.workers() if one.model == model)
            (process,) = (one for one in self.stage.launcher.processes if one.pid == view.pid)
            with self.supervisor.slot(model), self._holding(process):
                await done.wait()
            self.served += 1
        if entry in self.requests:
            self.requests.remove(entry)

    def step(self, group: anyio.abc.TaskGroup) -> None:
        what = self.rng.choices(
            ["request", "finish", "leave", "crash", "time", "pin", "unpin", "unload"],
            [30, 28, 4, 2, 20, 2, 4, 3],
        )[0]
        if what == "request":
            if len(self.requests) < 30:
                group.start_soon(self.request)
        elif what in {"finish", "leave"} and self.requests:
            done, scope = self.rng.choice(self.requests)
            done.set() if what == "finish" else scope.cancel()
        elif what == "crash" and self.stage.launcher.alive():
            process = self.rng.choice(self.stage.launcher.alive())
            self.crashed.add(process.pid)
            process.end(-9)
        elif what == "time":
            self.stage.clock.now += self.rng.uniform(0, 8)
            wake(self.supervisor, *self.deployments)
        elif what in {"pin", "unpin"}:
            self.supervisor.pin(self.rng.choice(self.models), is_pinned=what == "pin")
        elif what == "unload":
            self.supervisor.unload(self.rng.choice(self.models))

    def check(self) -> None:
        ledger = self.supervisor.residency.ledger
        assert ledger.held_mb <= BUDGET
        alive = {view.model for view in self.supervisor.workers() if view.state in ALIVE}
        assert alive <= set(ledger.held), "what runs is accounted for"
        for process in self.stage.launcher.processes:
            was_ended = process.code is not None and process.pid not in self.crashed
            assert not (was_ended and self.busy.get(process.pid)), "in-flight work was killed"


@pytest.mark.parametrize("seed", range(4))
async def test_chaos_ends_consistent(stage: Stage, seed: int) -> None:
    chaos = Chaos(stage, seed)
    supervisor = chaos.supervisor
    async with running(supervisor), anyio.create_task_group() as group:
        for _ in range(2500):
            chaos.step(group)
            for _ in range(chaos.rng.randrange(6)):
                await anyio.lowlevel.checkpoint()
                chaos.check()
        for model in chaos.models:
            supervisor.pin(model, is_pinned=False)
        with anyio.fail_after(20):
            while chaos.requests:
                for done, _ in chaos.requests:
                    done.set()
                stage.clock.now += 1
                wake(supervisor, *chaos.deployments)
                await anyio.sleep(0.002)
                chaos.check()
        for model in chaos.models:
            supervisor.unload(model)
        await until(supervisor, lambda: not ALIVE & set(states(supervisor).values()))
        await look(supervisor, *chaos.deployments)
        assert not stage.launcher.alive()
        assert supervisor.residency.ledger.held == {}
    assert chaos.served > 200
    assert len(stage.launcher.processes) > 50
