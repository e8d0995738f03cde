"""Tables of models and workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from local_agent.catalog import pull_command
from local_agent.choice import choose, is_pulled, shown_bench
from local_agent.cli.running import AgentUnreachable, CapacityRow, RunningAgent, WorkerRow
from local_agent.config import AgentConfig, ModelConfig
from local_agent.config_file import to_deployments
from local_agent.device import device
from local_agent.domain import Deployment, HostFacts
from local_agent.engines import AUTO, ENGINES
from local_agent.memory.meter import weights_bytes
from local_agent.weights.progress import gigabytes
from local_agent.weights.store import WeightStore
from shared.contracts.agents import Bench, Power, shown_status

_PIPED_WIDTH = 200


class ModelRow(TypedDict):
    """One model; `status` is the running agent's word, or `not pulled`, as `iir models list` says it.

    `engine` is the configured one, `chosen` the one that serves it, for the reason `why`; `device` is where
    that computes.
    """

    id: str
    aliases: list[str]
    engine: str
    status: str
    is_pulled: bool
    size_bytes: int | None
    pull_command: str | None
    chosen: str
    why: str
    device: str | None
    bench: list[dict[str, Any]]


def model_rows(
    config: AgentConfig, store: WeightStore, agent: RunningAgent, host: HostFacts
) -> list[ModelRow]:
    """Return the configured models, and those that only the running agent knows."""
    try:
        statuses = agent.statuses()
    except AgentUnreachable:
        statuses = {}
    deployments = to_deployments(config, store)
    rows = [
        _row(model, deployment, statuses.pop(model.id, None), host)
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
                chosen="",
                why="",
                device=None,
                bench=[],
            )
        )
    return rows


def _row(
    model: ModelConfig, deployment: Deployment, status: str | None, host: HostFacts
) -> ModelRow:
    choice = choose(deployment, host)
    engine = ENGINES[choice.engine]
    runs = replace(deployment, engine=choice.engine)
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
        chosen=choice.engine,
        why=choice.reason,
        device=device(runs, engine, host),
        bench=[row.model_dump(mode="json") for row in shown_bench(runs, host)],
    )


def model_table(rows: list[ModelRow]) -> Table:
    """Return the models for a terminal."""
    table = _table("model", "aliases", "engine", "computes on", "status", "weights")
    for row in rows:
        size = "" if row["size_bytes"] is None else gigabytes(row["size_bytes"])
        weights = row["pull_command"] or size
        aliases = ", ".join(row["aliases"])
        is_auto = row["engine"] == AUTO
        engine = f"{row['chosen']} (auto)" if is_auto else row["engine"]
        _add(table, row["id"], aliases, engine, row["device"] or "", row["status"], weights)
    return table


def choice_lines(rows: list[ModelRow]) -> list[str]:
    """Return why `auto` means the engine that it means, a line for each model with a choice."""
    return [
        f"{row['id']}: engine {row['chosen']}, {row['why']}"
        for row in rows
        if row["engine"] == AUTO and row["is_pulled"] and row["chosen"]
    ]


def measured_rows(rows: list[ModelRow]) -> list[tuple[str, Bench]]:
    """Return all measurements of the models, each with its model."""
    return [(row["id"], Bench.model_validate(one)) for row in rows for one in row["bench"]]


def bench_table(rows: Iterable[tuple[str, Bench]]) -> Table:
    """Return measurements for a terminal."""
    names = ("model", "engine", "computes on", "load", "first token", "tokens/s")
    table = _table(*names, "tokens/s, in parallel", "memory peak", "measured", "")
    for model, one in rows:
        version = f" {one.engine_version}" if one.engine_version else ""
        ttft = ", ".join(f"{at.ttft_ms:.0f} ms ({at.prompt_tokens})" for at in one.ttft)
        marks = [name for name, is_so in _marks(one) if is_so]
        _add(
            table,
            model,
            f"{one.engine}{version}",
            one.device or "",
            "" if one.load_s is None else f"{one.load_s:.1f} s",
            ttft,
            f"{one.tokens_per_s:.1f}",
            f"{one.parallel_tokens_per_s:.1f} ({one.parallel})",
            "" if one.memory_peak_bytes is None else f"{_mib(one.memory_peak_bytes)} MiB",
            datetime.fromtimestamp(one.measured_at, timezone.utc).strftime("%Y-%m-%d"),
            ", ".join(marks),
        )
    return table


def _marks(one: Bench) -> tuple[tuple[str, bool], ...]:
    return ("disturbed", one.is_disturbed), (
        "of another configuration or version: does not count",
        not one.is_current,
    )


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
