"""`iir-agent bench`: what a model does on this machine, measured through the running agent."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Annotated

import psutil
import typer

from local_agent.bench.measure import PARALLEL, BenchFailed, Figures, Measurer
from local_agent.bench.sampler import Look, Tally, sampled
from local_agent.bench.store import Row
from local_agent.bench.versions import engine_version
from local_agent.cli.context import CommandFailed, Context, Json, open_context, plain_errors
from local_agent.cli.listing import bench_table, console
from local_agent.cli.running import AgentUnreachable, RunningAgent, WorkerRow
from local_agent.config import AgentConfig
from local_agent.config_file import to_deployments
from local_agent.device import device
from local_agent.domain import Deployment, HostFacts
from local_agent.engines import ENGINES
from local_agent.memory.meter import tree_mb
from local_agent.this_host import bench_store, this_host
from shared.contracts.agents import Bench
from shared.kit.clock import monotonic, wall_time

_LOAD_S = 1800.0
_UNLOAD_S = 120.0
_LOOK_S = 0.2
_TOLD_S = 7.0
_CPU_LOOK_S = 1.0
_BUSY_PERCENT = 25.0
_ALIVE = frozenset({"starting", "loading", "ready", "draining", "stopping"})

Force = Annotated[
    bool,
    typer.Option("--force", help="Measure although others have work here; says so of the figures."),
]


@dataclass(frozen=True, slots=True)
class _Subject:
    """The model at hand: as it is configured, as it runs, and who runs it."""

    agent: RunningAgent
    deployment: Deployment
    host: HostFacts

    @property
    def model(self) -> str:
        return self.deployment.model

    @property
    def is_external(self) -> bool:
        return self.deployment.external_url is not None

    def worker(self) -> WorkerRow | None:
        rows = (row for row in self.agent.workers() if row.model == self.model)
        return next(rows, None)

    def is_loaded(self) -> bool:
        worker = self.worker()
        return worker is not None and worker.state in _ALIVE


@dataclass(frozen=True, slots=True)
class _Result:
    figures: Figures
    load_s: float | None
    peak_bytes: int | None


def bench(
    model: Annotated[
        str | None, typer.Argument(help="Id or alias of a model; default: all that are pulled.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure models on this machine: load time, first token, tokens per second, memory."""
    with plain_errors(as_json=as_json):
        context = open_context()
        rows = _measured(context, model, is_forced=force, is_quiet=as_json)
        if as_json:
            typer.echo(json.dumps([row.model_dump(mode="json") for row in rows]))
            return
        console().print(bench_table((row.model, row.figures) for row in rows))
        for note in dict.fromkeys(f"{row.model}: {note}" for row in rows for note in row.notes):
            typer.echo(note)


def _measured(context: Context, model: str | None, *, is_forced: bool, is_quiet: bool) -> list[Row]:
    """Measure one after the other; what was measured before something failed counts too."""
    rows: list[Row] = []
    try:
        for name in _chosen(context, model):
            if not is_quiet:
                typer.echo(f"measuring {name}: this takes a minute or more", err=True)
            rows.append(_bench(context, name, is_forced=is_forced))
    finally:
        if rows:
            context.agent.reload()
    return rows


def _chosen(context: Context, model: str | None) -> list[str]:
    """Return the ids of the models to measure."""
    config = context.config()
    if model is not None:
        found = config.find(model)
        if found is None:
            raise CommandFailed(f"no model is named {model}; `iir-agent ls` lists them")
        return [found.id]
    known = {one["id"]: one for one in context.agent.models()}
    ids = [one.id for one in config.models if known.get(one.id, {}).get("is_pulled") is True]
    if not ids:
        raise CommandFailed("no model is pulled here; `iir-agent ls` says how to pull one")
    return ids


def _bench(context: Context, model: str, *, is_forced: bool) -> Row:
    subject = _subject(context, context.config(), model)
    notes = _disturbances(subject.agent, is_forced=is_forced)
    was_loaded, base_url = subject.is_loaded(), subject.agent.base_url()
    wired_mb = _wired_mb()
    load_s = _load(subject, notes)
    tally = Tally(None if load_s is None else wired_mb)
    description = subject.agent.model(model)
    context_tokens = description.get("context_length")
    measurer = Measurer(
        base_url,
        model,
        context_tokens=context_tokens if isinstance(context_tokens, int) else None,
        clock=monotonic,
        rng=Random(),  # noqa: S311 - makes prompts differ, guards nothing
        in_flight=tally.in_flight,
        may_go_on=not subject.is_external,
    )
    worker = subject.worker()
    try:
        with sampled(tally, lambda: _look(subject, worker)):
            figures = measurer.run()
    except BenchFailed as error:
        raise CommandFailed(f"{model} was not measured: {error}") from None
    finally:
        if not (was_loaded or subject.is_external or (worker is not None and worker.is_pinned)):
            subject.agent.tell(model, "unload")
    if tally.is_disturbed:
        notes.append("disturbed: the agent had other requests meanwhile")
    measured = _Result(figures, None if load_s is None else round(load_s, 2), tally.peak_bytes)
    row = _row(context, subject, measured, notes)
    try:
        bench_store(context.settings).add(row)
    except OSError as error:
        raise CommandFailed(f"the figures can't be kept: {error.strerror or error}") from None
    return row


def _subject(context: Context, config: AgentConfig, model: str) -> _Subject:
    """Return the model with the engine that the running agent has for it."""
    host = this_host(context.settings)
    (found,) = (each for each in to_deployments(config, context.store) if each.model == model)
    subject = _Subject(context.agent, found, host)
    worker = subject.worker()
    if worker is None or worker.engine not in ENGINES:
        raise CommandFailed(
            f"the running agent does not know {model}: `iir-agent config reload` says why"
        )
    return replace(subject, deployment=replace(found, engine=worker.engine))


def _disturbances(agent: RunningAgent, *, is_forced: bool) -> list[str]:
    """Refuse to measure beside the work of others, which both would suffer from; or say that it is so."""
    capacity = agent.capacity()
    if capacity is None:
        raise CommandFailed("the running agent is an older one: restart it with this version")
    if capacity.state != "ready":
        raise CommandFailed(f"the agent is {capacity.state}: iir-agent resume, then measure again")
    work = _work(agent)
    notes = []
    if work and not is_forced:
        raise CommandFailed(
            f"the agent has {work} requests of others: the figures would be wrong and their answers"
            " late. Measure when it is idle, or with --force, which marks the figures as disturbed"
        )
    if work:
        notes.append(f"disturbed: the agent had {work} requests of others")
    busy = psutil.cpu_percent(_CPU_LOOK_S)
    if busy >= _BUSY_PERCENT:
        notes.append(
            f"disturbed: other programs kept {busy:.0f} % of the processors busy before it began"
        )
    return notes


def _work(agent: RunningAgent) -> int:
    """Return how many requests of others there are.

    What an engine tells is up to five seconds old: only what it tells on, beyond what the agent itself
    has sent it, is work.
    """
    limit = monotonic() + _TOLD_S
    while True:
        rows = agent.workers()
        work = sum(row.running + row.waiting for row in rows)
        if not work or any(row.in_flight for row in rows) or monotonic() > limit:
            return work
        time.sleep(_LOOK_S)


def _load(subject: _Subject, notes: list[str]) -> float | None:
    """Load the model anew, and return how long that took; None if it was there and has to stay."""
    if subject.is_external:
        notes.append("a server that is not the agent's has it: load time and memory are not known")
        return None
    worker = subject.worker()
    if worker is not None and worker.state in _ALIVE:
        if worker.is_pinned:
            notes.append("it is pinned and stayed loaded: the load time was not measured")
            subject.agent.tell(subject.model, "load", {"wait_s": _LOAD_S}, timeout_s=_LOAD_S)
            return None
        subject.agent.tell(subject.model, "unload")
        _until_gone(subject)
    began = monotonic()
    subject.agent.tell(subject.model, "load", {"wait_s": _LOAD_S}, timeout_s=_LOAD_S)
    return monotonic() - began


def _until_gone(subject: _Subject) -> None:
    limit = monotonic() + _UNLOAD_S
    while subject.is_loaded():
        if monotonic() > limit:
            raise CommandFailed(
                f"{subject.model} was not unloaded in time: somebody asks for it, or"
                " `iir-agent ps` says why; measure when it is idle"
            )
        time.sleep(_LOOK_S)


def _look(subject: _Subject, worker: WorkerRow | None) -> Look:
    pid = None if worker is None or _is_elsewhere(subject) else worker.pid
    in_flight = 0
    with suppress(AgentUnreachable):  # the requests themselves will tell
        in_flight = sum(row.in_flight for row in subject.agent.workers())
    return Look(in_flight, None if pid is None else tree_mb(pid), _wired_mb())


def _is_elsewhere(subject: _Subject) -> bool:
    """Tell whether the worker's process id is none of this system: in Docker's machine on a Mac."""
    return subject.host.platform == "darwin" and subject.deployment.engine == "vllm_docker"


def _wired_mb() -> int | None:
    """Return the wired memory, which only macOS tells."""
    wired = getattr(psutil.virtual_memory(), "wired", None)
    return None if wired is None else int(wired) // 2**20


def _row(context: Context, subject: _Subject, measured: _Result, notes: list[str]) -> Row:
    deployment, host = subject.deployment, subject.host
    engine = ENGINES[deployment.engine]
    launch = engine.launch(deployment, 0) if deployment.engine == "vllm_docker" else None
    image = None if launch is None or launch.container is None else launch.container.image
    figures = measured.figures
    return Row(
        model=deployment.model,
        config_hash=deployment.config_hash,
        machine=host.machine,
        notes=tuple(notes),
        figures=Bench(
            engine=deployment.engine,
            engine_version=engine_version(deployment.engine, context.settings.interpreters, image),
            device=device(deployment, engine, host),
            measured_at=int(wall_time()),
            load_s=measured.load_s,
            ttft=figures.ttft,
            tokens_per_s=figures.tokens_per_s,
            parallel=PARALLEL,
            parallel_tokens_per_s=figures.parallel_tokens_per_s,
            memory_peak_bytes=measured.peak_bytes,
            is_disturbed=any(note.startswith("disturbed") for note in notes),
        ),
    )
