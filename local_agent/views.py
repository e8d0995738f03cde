"""Workers as the status API and the command line show them."""

from __future__ import annotations

from local_agent.catalog import Entry
from local_agent.domain import ModelId, WorkerView
from local_agent.memory.residency import Residency
from local_agent.worker import Worker


def worker_view(
    model: ModelId, worker: Worker, entry: Entry | None, residency: Residency, now: float
) -> WorkerView:
    """Return what is to be seen of a worker; `entry` is None if its model was removed."""
    status, load, line = worker.status, worker.load, worker.line
    return WorkerView(
        model=model,
        engine=entry.deployment.engine if entry else "",
        state=status.state,
        pid=worker.pid,
        in_flight=status.in_flight,
        since_s=max(0.0, now - status.since),
        reason=status.reason or residency.room.shortage(model),
        memory_mb=residency.ledger.held.get(model, 0),
        is_pinned=residency.is_pinned(model),
        ttl_s=entry.deployment.ttl_s if entry else None,
        expected_load_s=residency.load_s(model) if entry else 0.0,
        running=load.running,
        waiting=load.waiting,
        max_queue=line.max_waiting,
        expected_wait_s=line.expected_wait_s,
    )
