"""Tables of models and workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from local_agent.cli.running import AgentUnreachable, RunningAgent, WorkerRow
from local_agent.config import AgentConfig, ModelConfig
from local_agent.domain import ModelId
from local_agent.weights.files import gigabytes
from local_agent.weights.store import WeightStore

_PIPED_WIDTH = 200


class ModelRow(TypedDict):
    """One model; `status` is the running agent's word, or what the disk tells."""

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
    rows = [_row(model, store, statuses.pop(model.id, None)) for model in config.models]
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


def _row(model: ModelConfig, store: WeightStore, status: str | None) -> ModelRow:
    refs = [source.ref for source in model.sources]
    path = store.find(ModelId(model.id), refs) if refs else None
    is_pulled = path is not None or not refs
    return ModelRow(
        id=model.id,
        aliases=list(model.aliases),
        engine="external" if model.is_external else model.engine,
        status=status or "unloaded",
        is_pulled=is_pulled,
        size_bytes=None if path is None else path.stat().st_size,
        pull_command=None if is_pulled else f"iir-agent pull {model.id}",
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
            f"{worker.since_s:.0f} s",
            worker.reason or "",
        )
    return table


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
