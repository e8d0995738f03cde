"""Models: what their engines lack here, what is not pulled, and what can never fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from local_agent.catalog import pull_command
from local_agent.choice import choose, is_pulled
from local_agent.config import IN_CONTAINERS, AgentConfig, ModelConfig
from local_agent.config_file import to_deployments
from local_agent.doctor.finding import Finding, Level, split_reason
from local_agent.domain import Deployment, HostFacts
from local_agent.engines import ENGINES
from local_agent.memory.estimate import estimate_mb
from local_agent.memory.meter import weights_bytes
from local_agent.ports import ContainerSpec
from local_agent.weights.progress import gigabytes
from local_agent.weights.source import HubSource, LocalSource, PackageSource, Source
from local_agent.weights.store import WeightStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A configured model as it would run here.

    `weights_bytes` is the size of its weights on this disk, else what its source says, 0 if nothing
    does; `missing_bytes` is what a pull would add. `reason` says why its engine can't run it.
    """

    model: ModelConfig
    deployment: Deployment
    is_pulled: bool
    weights_bytes: int
    needs_mb: int
    reason: str | None

    @property
    def missing_bytes(self) -> int:
        """Return how much a pull would write."""
        return 0 if self.is_pulled else self.weights_bytes

    @property
    def can_be_pulled(self) -> bool:
        """Tell whether a pull would be done: files always, what is for a container if it can run."""
        return self.reason is None or bool(self.model.sources)

    @property
    def is_relied_on(self) -> bool:
        """Tell whether it is meant to be in memory without being asked for."""
        return self.model.preload or self.model.pin

    def container(self) -> ContainerSpec | None:
        """Return the container that it would run in, if it can run and does so in one."""
        if self.reason is not None or self.model.engine not in IN_CONTAINERS:
            return None
        launch = ENGINES[self.deployment.engine].launch(self.deployment, 0)
        return None if launch is None else launch.container


def plans(config: AgentConfig, store: WeightStore, host: HostFacts) -> list[Plan]:
    """Return what would become of each model of the configuration."""
    deployments = to_deployments(config, store)
    return [
        _plan(model, replace(found, engine=choose(found, host).engine), host)
        for model, found in zip(config.models, deployments, strict=True)
    ]


def examine_models(found: list[Plan], budget: int) -> Iterator[Finding]:
    """Yield what is to be said of each model; `budget` is what all together may take, in MiB."""
    for plan in found:
        yield from _examine(plan, budget)


def _examine(plan: Plan, budget: int) -> Iterator[Finding]:
    check, engine = f"model {plan.model.id}", plan.deployment.engine
    level: Level = "problem" if plan.is_relied_on else "note"
    is_well = True
    if plan.reason is not None:
        is_well = False
        yield split_reason(check, "problem", plan.reason)
    if not plan.is_pulled and plan.can_be_pulled:
        is_well = False
        size = f" ({gigabytes(plan.weights_bytes)})" if plan.weights_bytes else ""
        text = f"its weights are not on this host{size}"
        yield Finding(check, level, text, pull_command(plan.deployment.model))
    if plan.needs_mb > budget:
        is_well = False
        text = f"it takes about {plan.needs_mb} MiB; the budget for all models is {budget} MiB"
        fix = "lower its `context` or `parallel`, take smaller weights, or raise `memory_budget`"
        yield Finding(check, level, text, fix)
    if is_well and plan.model.is_external:
        yield Finding(check, "ok", f"a server of yours at {plan.model.url}")
    elif is_well:
        yield Finding(check, "ok", f"{engine}, about {plan.needs_mb} of {budget} MiB")


def _plan(model: ModelConfig, deployment: Deployment, host: HostFacts) -> Plan:
    engine = ENGINES[deployment.engine]
    is_here = not engine.needs_weights(deployment) or is_pulled(deployment, engine)
    size = weights_bytes(deployment) if is_here else _promised(model.sources)
    as_pulled = deployment
    if not is_here and model.sources:
        as_pulled = replace(deployment, weights=Path(_file_name(model.sources[0])))
    return Plan(
        model=model,
        deployment=deployment,
        is_pulled=is_here,
        weights_bytes=size,
        needs_mb=estimate_mb(deployment, size),
        reason=engine.unsupported_reason(host, as_pulled),
    )


def _promised(sources: tuple[Source, ...]) -> int:
    """Return the size that a source tells of its weights; 0 if none does."""
    for source in sources:
        if isinstance(source, LocalSource):
            return source.path.stat().st_size if source.path.is_file() else 0
        if source.size_bytes is not None:
            return source.size_bytes
    return 0


def _file_name(source: Source) -> str:
    """Return what the weights' file will be called: what an engine asks of it can be said before."""
    match source:
        case PackageSource():
            return source.member or "weights.gguf"
        case HubSource():
            return source.file_name
        case LocalSource():
            return source.path.name
