"""The container engine: where it answers, its memory, and the images that models need."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from local_agent.catalog import pull_command
from local_agent.containers.contexts import DockerContext, parse_contexts
from local_agent.doctor.finding import Finding, Level, split_reason
from local_agent.doctor.models import Plan
from local_agent.domain import HostFacts
from local_agent.host.tools import ask
from local_agent.ports import ContainerError, ContainerHost, ContainerSurvey

_CHECK = "containers"
# a virtual machine tells a little less than it was given, and so does the host
_WHOLE_HOST = 0.9


def examine_containers(
    plans: Sequence[Plan],
    host: HostFacts,
    budget_mb: int,
    connect: Callable[[], ContainerSurvey],
) -> Iterator[Finding]:
    """Yield what is to be said of the container engine; nothing is started or pulled.

    Args:
        plans: the configured models.
        host: this host.
        budget_mb: what all models together may take.
        connect: finds the engine; blocks, and raises `ContainerError`.
    """
    users = [plan for plan in plans if plan.deployment.engine == "vllm_docker"]
    level: Level = "problem" if users else "note"
    if host.container_problem is not None:
        yield split_reason(_CHECK, level, host.container_problem)
        return
    try:
        with closing(connect()) as survey:
            found = survey.host()
            yield Finding(_CHECK, "ok", _described(found))
            yield from _without_gpu(users, host)
            yield from _memory(found, users, host, budget_mb)
            yield from _images(users, survey)
    except ContainerError as error:
        finding = split_reason(_CHECK, level, error.strerror or "the container engine failed")
        yield finding if users else _unneeded(finding)


def _described(found: ContainerHost) -> str:
    memory = f", {found.memory_mb} MiB" if found.memory_mb else ""
    return f"{found.name} {found.version} (API {found.api}) by {found.source}: {found.url}{memory}"


def _unneeded(finding: Finding) -> Finding:
    text = f"{finding.message}; no model of yours needs one"
    return Finding(finding.check, "note", text, finding.fix)


def _memory(
    found: ContainerHost, users: Sequence[Plan], host: HostFacts, budget_mb: int
) -> Iterator[Finding]:
    if not found.memory_mb or found.memory_mb >= host.memory_mb * _WHOLE_HOST:
        return
    fix = "give it more in the engine's settings (Docker Desktop: Settings, Resources, Memory)"
    for plan in users:
        if plan.needs_mb > found.memory_mb:
            text = (
                f"{plan.model.id} takes about {plan.needs_mb} MiB; containers get {found.memory_mb}"
            )
            yield Finding("container memory", "problem", text, fix)
    if found.memory_mb < budget_mb:
        text = (
            f"containers get {found.memory_mb} MiB together; the budget for models is {budget_mb}"
        )
        yield Finding("container memory", "note", text, fix)


def _without_gpu(users: Sequence[Plan], host: HostFacts) -> Iterator[Finding]:
    """Say for each model in a container that a Mac gives containers no GPU, whatever engine runs them."""
    if host.platform != "darwin":
        return
    for plan in users:
        text = f"{plan.model.id} runs in a container: CPU only, since containers have no Metal on a Mac"
        yield Finding(
            "container gpu", "note", text, "a native engine uses the GPU: see docs/mac.md"
        )


def _images(users: Sequence[Plan], survey: ContainerSurvey) -> Iterator[Finding]:
    for plan in users:
        spec = plan.container()
        if spec is None:
            continue
        if survey.has_image(spec.image):
            yield Finding("image", "ok", f"{spec.image} is there")
            continue
        level: Level = "problem" if plan.is_pulled or plan.is_relied_on else "note"
        text = f"{spec.image} is not there; {plan.model.id} needs it"
        yield Finding("image", level, text, pull_command(plan.deployment.model))


def examine_contexts(env: Mapping[str, str], plans: Sequence[Plan]) -> Iterator[Finding]:
    """Yield whether Docker's current context leads nowhere while another one would not.

    A variable that names the engine beats every context, so then there is nothing to say.
    """
    docker = shutil.which("docker", path=env.get("PATH"))
    if docker is None or env.get("DOCKER_HOST") or env.get("DOCKER_CONTEXT"):
        return
    told = {name: env[name] for name in ("HOME", "DOCKER_CONFIG") if name in env}
    contexts = parse_contexts(ask((docker, "context", "ls"), env=told) or "")
    is_used = any(plan.deployment.engine == "vllm_docker" for plan in plans)
    yield from dead_context(contexts, Path.exists, is_used=is_used)


def dead_context(
    contexts: Sequence[DockerContext], exists: Callable[[Path], bool], *, is_used: bool
) -> Iterator[Finding]:
    """Yield that the socket of the current context is not there, if that of another one is.

    Args:
        contexts: Docker's.
        exists: tells whether a socket is there.
        is_used: whether a model needs the container engine.
    """
    live = [context for context in contexts if _socket_exists(context, exists)]
    current = next((context for context in contexts if context.is_current), None)
    if current is None or current.name == "default" or current in live or not live:
        return  # without a choice of somebody's the agent looks for every usual socket itself
    if not current.url.startswith("unix://"):
        return
    text = f"Docker's context {current.name} leads to a socket that is not there; that of {live[0].name} is"
    level: Level = "problem" if is_used else "note"
    fix = f"start {current.name}, or: docker context use {live[0].name}; then restart the agent"
    yield Finding("docker context", level, text, fix)


def _socket_exists(context: DockerContext, exists: Callable[[Path], bool]) -> bool:
    is_socket = context.url.startswith("unix://")
    return is_socket and exists(Path(context.url.removeprefix("unix://")))
