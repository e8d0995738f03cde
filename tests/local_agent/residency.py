"""Supervisors of models that do not fit together: what their tests set up and wait for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from local_agent.domain import Deployment, ModelId, WorkerState
from local_agent.memory.residency import Observed
from local_agent.supervisor import Supervisor

if TYPE_CHECKING:
    from tests.local_agent.conftest import Stage

S = WorkerState
A, B, C = ModelId("a"), ModelId("b"), ModelId("c")
BUDGET = 100


def sized(stage: Stage, model: str, mb: int, **more: object) -> Deployment:
    return replace(stage.deployment(model), memory_mb=mb, **more)  # type: ignore[arg-type]


def supervised(stage: Stage, *deployments: Deployment, min_residency_s: float = 0.0) -> Supervisor:
    stage.limit(health_every_s=0.05)
    supervisor = stage.supervisor(*deployments)
    supervisor.residency.ledger.set_budget(BUDGET)
    supervisor.residency.min_residency_s = min_residency_s
    return supervisor


@asynccontextmanager
async def running(supervisor: Supervisor) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        yield
        group.cancel_scope.cancel()


async def until(supervisor: Supervisor, is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not is_so():
            await supervisor.changed(supervisor.version)


def states(supervisor: Supervisor) -> dict[str, WorkerState]:
    return {view.model: view.state for view in supervisor.workers()}


async def settled(supervisor: Supervisor, model: str, state: WorkerState) -> None:
    await until(supervisor, lambda: states(supervisor).get(model) is state)


def wake(supervisor: Supervisor, *deployments: Deployment) -> None:
    """Make the loop look at the clock, which nobody tells it of."""
    supervisor.set_desired(deployments)


async def look(supervisor: Supervisor, *deployments: Deployment) -> None:
    """Make the loop look at the clock, and wait until it has looked and begun what is to be done."""
    looked = anyio.Event()
    settle = supervisor.residency.settle

    def settled_once(observed: Observed) -> None:
        settle(observed)
        looked.set()  # nothing is awaited between this and the plan's last action

    supervisor.residency.settle = settled_once  # type: ignore[method-assign]
    wake(supervisor, *deployments)
    with anyio.fail_after(5):
        await looked.wait()
    supervisor.residency.settle = settle  # type: ignore[method-assign]
