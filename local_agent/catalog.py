"""What the agent knows of its models: names, engines, and why one can't run here. Immutable."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from local_agent.choice import choose, is_pulled, shown_bench
from local_agent.domain import Deployment, HostFacts, ModelId, WorkerState
from local_agent.ports import Engine, Wanted
from shared.contracts.agents import AgentModel, Bench, ModelStatus
from shared.contracts.apis import paths_of
from shared.kit.plugins import Plugins

_STATUS: Mapping[WorkerState, ModelStatus] = {
    WorkerState.UNAVAILABLE: "failed",
    WorkerState.PULLING: "downloading",
    WorkerState.COLD: "unloaded",
    WorkerState.STARTING: "loading",
    WorkerState.LOADING: "loading",
    WorkerState.READY: "loaded",
    WorkerState.DRAINING: "loading",  # it takes nothing new until it has restarted
    WorkerState.STOPPING: "loading",
    WorkerState.BACKOFF: "failed",
    WorkerState.QUARANTINED: "failed",
    WorkerState.EXTERNAL: "loaded",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One known model. `problem` says why it can't run here; `engine` is None if there is none.

    `apis` and `max_in_flight` are what its engine says of itself; None for what can't run here. `bench`
    is what was measured of it on this machine.
    """

    deployment: Deployment
    engine: Engine | None
    is_pulled: bool
    problem: str | None
    apis: tuple[str, ...] | None = None
    max_in_flight: int | None = None
    bench: tuple[Bench, ...] = ()

    @property
    def pull_command(self) -> str | None:
        """Return the command that pulls the weights; None if nothing is missing."""
        return None if self.is_pulled else pull_command(self.deployment.model)

    def view(self, state: WorkerState, reason: str | None) -> AgentModel:
        """Return the model as clients and the router see it.

        Args:
            state: the worker's state.
            reason: the worker's reason for it.
        """
        return AgentModel(
            id=self.deployment.model,
            aliases=self.deployment.aliases,
            engine=self.deployment.engine,
            status=self._status(state, reason),
            is_pulled=self.is_pulled,
            pull_command=self.pull_command,
            context_tokens=self.deployment.context_tokens,
            apis=self.apis,
            max_in_flight=self.max_in_flight,
            bench=self.bench,
        )

    def speaks(self, path: str) -> bool:
        """Tell whether its engine serves this route; what can't run here has another problem."""
        return self.apis is None or path in paths_of(self.apis)

    def _status(self, state: WorkerState, reason: str | None) -> ModelStatus:
        if self.problem is not None and state is not WorkerState.PULLING:
            return "failed" if self.is_pulled else "unloaded"
        if state is WorkerState.UNAVAILABLE:
            return "unloaded"  # the problem is gone, the worker will learn of it
        if state is WorkerState.LOADING and reason is not None:
            return "failed"  # an external server that does not answer
        return _STATUS[state]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All known models, and the names they go by."""

    entries: Mapping[ModelId, Entry]
    names: Mapping[str, ModelId]

    def resolve(self, name: str) -> ModelId | None:
        """Return the model of an id or alias; None if nobody has this name."""
        return self.names.get(name)

    def wanted(self) -> dict[str, Wanted]:
        """Return what a worker of each model that can run here would be."""
        return {
            model: Wanted(
                entry.deployment.config_hash, partial(entry.engine.launch, entry.deployment)
            )
            for model, entry in self.entries.items()
            if entry.problem is None and entry.engine is not None
        }


def catalog(
    deployments: Iterable[Deployment], engines: Plugins[Engine], host: HostFacts
) -> Catalog:
    """Return the catalog of these deployments; ids win over aliases, earlier aliases over later."""
    entries = {deployment.model: _measured(deployment, engines, host) for deployment in deployments}
    names: dict[str, ModelId] = {str(model): model for model in entries}
    for model, entry in entries.items():
        for alias in entry.deployment.aliases:
            names.setdefault(alias, model)
    return Catalog(entries, names)


def pull_command(model: ModelId) -> str:
    """Return the command that pulls the model's weights."""
    return f"iir-agent pull {shlex.quote(model)}"


def _measured(deployment: Deployment, engines: Plugins[Engine], host: HostFacts) -> Entry:
    entry = _entry(deployment, engines, host)
    return replace(entry, bench=shown_bench(entry.deployment, host))


def _entry(deployment: Deployment, engines: Plugins[Engine], host: HostFacts) -> Entry:
    deployment = replace(deployment, engine=choose(deployment, host, engines).engine)
    try:
        engine = engines[deployment.engine]
    except LookupError as error:
        return Entry(deployment=deployment, engine=None, is_pulled=True, problem=str(error))
    if engine.needs_weights(deployment) and not is_pulled(deployment, engine):
        problem = f"its weights are not on this host; pull them: {pull_command(deployment.model)}"
        return Entry(deployment=deployment, engine=engine, is_pulled=False, problem=problem)
    problem_here = engine.unsupported_reason(host, deployment)
    if problem_here is not None:
        return Entry(deployment=deployment, engine=engine, is_pulled=True, problem=problem_here)
    return Entry(
        deployment=deployment,
        engine=engine,
        is_pulled=True,
        problem=None,
        apis=engine.apis(deployment),
        max_in_flight=engine.max_in_flight(deployment),
    )
