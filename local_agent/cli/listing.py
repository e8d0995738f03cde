"""Tables of models and workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from local_agent.catalog import is_pulled, pull_command
from local_agent.cli.running import AgentUnreachable, CapacityRow, RunningAgent, WorkerRow
from local_agent.config import AgentConfig, ModelConfig
from local_agent.config_file import to_deployments
from local_agent.domain import Deployment
from local_agent.engines import ENGINES, choose_engine
from local_agent.memory.meter import weights_bytes
from local_agent.weights.progress import gigabytes
from local_agent.weights.store import WeightStore
from shared.contracts.agents import Power, shown_status

_PIPED_WIDTH = 200


class ModelRow(TypedDict):
    """One model; `status` is the running agent's word, or `not pulled`, as `iir models list` says it."""

    id: str
    aliases: list[str]
    engine: str
    status: str
    is_pulled: bool
    size_bytes: int | None
    pull_command: str | None


def model_rows(config: AgentConfig, store: WeightStore, agent: RunningAgent) -> list[ModelRow]:
    """Return the configured models, and those that only the running agent knows."""
    try:
        statuses = agent.statuses()
    except AgentUnreachable:
        statuses = {}
    deployments = to_deployments(config, store)
    rows = [
        _row(model, deployment, statuses.pop(model.id, None))
        for model, deployment in zip(config.models, deployments, strict=True)
    ]
    for model_id, status in statuses.items():
        rows.append(
            ModelRow(
                id=model_id,
                aliases=[],
                engine="",
                status=status,
                is_pulled=True,
                size_bytes=None,
                pull_command=None,
            )
        )
    return rows


def _row(model: ModelConfig, deployment: Deployment, status: str | None) -> ModelRow:
    engine = ENGINES[choose_engine(deployment)]
    is_here = not engine.needs_weights(deployment) or is_pulled(deployment, engine)
    size = weights_bytes(deployment)
    return ModelRow(
        id=model.id,
        aliases=list(model.aliases),
        engine="external" if model.is_external else model.engine,
        status=shown_status(status or "unloaded", is_pulled=is_here),
        is_pulled=is_here,
        size_bytes=size or None,
        pull_command=None if is_here else pull_command(deployment.model),
    )


def model_table(rows: list[ModelRow]) -> Table:
    """Return the models for a terminal."""
    table = _table("model", "aliases", "engine", "status", "weights")
    for row in rows:
        size = "" if row["size_bytes"] is None else gigabytes(row["size_bytes"])
        weights = row["pull_command"] or size
        aliases = ", ".join(row["aliases"])
        _add(table, row["id"], aliases, row["engine"], row["status"], weights)
    return table


def worker_table(workers: list[WorkerRow]) -> Table:
    """Return the workers for a terminal."""
    names = ("model", "engine", "state", "pid", "memory", "running", "waiting", "since", "reason")
    table = _table(*names)
    for worker in workers:
        _add(
            table,
            worker.model,
            worker.engine,
            worker.state,
            "" if worker.pid is None else str(worker.pid),
            _memory(worker),
            str(worker.running),
            str(worker.waiting),
            _since(worker),
            worker.reason or "",
        )
    return table


def capacity_text(capacity: CapacityRow) -> str:
    """Return the budget in a line, what is known of the power before it, and after it that it drains."""
    held = _mib(capacity.budget_bytes - capacity.free_bytes)
    text = f"memory: {held} of {_mib(capacity.budget_bytes)} MiB held, {_mib(capacity.free_bytes)} MiB free"
    if capacity.evictable_bytes:
        text += f", {_mib(capacity.evictable_bytes)} MiB more if idle models go"
    if capacity.power is not None and capacity.power != Power():
        text = f"{power_text(capacity.power)}\n{text}"
    if capacity.state != "ready":
        text += f"\n{drain_text(capacity)}"
    return text


def power_text(power: Power) -> str:
    """Return in a line what the host runs on."""
    charge = "" if power.battery_percent is None else f" ({power.battery_percent} %)"
    names = {"ac": "mains", "battery": "battery", "unknown": "unknown"}
    return f"power: {names[power.source]}{charge}, thermal {power.thermal}, lid {power.lid}"


def drain_text(capacity: CapacityRow) -> str:
    """Say in a line how a drain stands."""
    if capacity.reason is not None:
        left = f", {capacity.in_hand} to finish" if capacity.in_hand else ""
        return f"draining: {capacity.reason}{left}; nothing new is taken until that is over"
    if capacity.state == "draining":
        return (
            f"draining: {capacity.in_hand} to finish; nothing new is taken until `iir-agent resume`"
        )
    if capacity.state == "drained":
        return "drained: nothing is in hand, and nothing new is taken until `iir-agent resume`"
    return "ready: the agent takes work"


def _mib(size: int) -> int:
    return max(0, size) // 2**20


def _since(worker: WorkerRow) -> str:
    """Return for how long it has been so; a load against how long it is expected to take."""
    is_loading = worker.state == "loading" and worker.expected_load_s > 0
    of = f" of about {worker.expected_load_s:.0f} s" if is_loading else " s"
    return f"{worker.since_s:.0f}{of}"


def _memory(worker: WorkerRow) -> str:
    """Return what it holds, and for how long."""
    held = f"{worker.memory_mb} MiB" if worker.memory_mb else ""
    kept = "pinned" if worker.is_pinned else f"ttl {worker.ttl_s:.0f} s" if worker.ttl_s else ""
    return ", ".join(part for part in (held, kept) if part)


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table with these columns and rows for a terminal."""
    found = _table(*names)
    for row in rows:
        _add(found, *row)
    return found


def console() -> Console:
    """Return where tables go; piped output gets whole lines instead of a terminal's 80 columns."""
    found = Console()
    return found if found.is_terminal else Console(width=_PIPED_WIDTH)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    """Add a row; what models and reasons are called must not be taken for markup."""
    table.add_row(*(Text(cell) for cell in cells))
