"""Which engine `engine: auto` means on this host, and why. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from local_agent.bench.versions import engine_version
from local_agent.domain import Deployment, HostFacts, Measured
from local_agent.engines import AUTO, ENGINES, choose_engine
from local_agent.ports import Engine
from shared.contracts.agents import Bench
from shared.kit.plugins import Plugins

_IN_CONTAINER = "vllm_docker"
_NEVER_AUTO = frozenset({"simulated", "external", _IN_CONTAINER})
_FOLDERS_ON_A_MAC = ("mlx_lm", "vllm_metal", "vllm_mlx", "vllm", "torch_mps")
_FOLDERS_ELSEWHERE = ("vllm", "mlx_lm", "torch_mps")
"""Engines that load a folder with a Hugging Face model; the first is named where none can run here."""
_ANSWER_TOKENS = 256
_MOST_SHOWN = 8
"""Measurements of one model: each heartbeat carries them."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and why it is the one: a phrase."""

    engine: str
    reason: str


def choose(deployment: Deployment, host: HostFacts, engines: Plugins[Engine] = ENGINES) -> Choice:
    """Return the configured engine; for `auto` the fastest measured one that can serve these weights.

    A measurement beats what was measured too, and nothing else: as long as the engine that the kind of
    weights means was not measured, that one is taken. Only what was measured on this machine, with this
    configuration and with the engine's present version counts.

    Args:
        deployment: with its weights, and its engine as configured.
        host: what can run here, and what was measured.
        engines: by name.
    """
    if deployment.engine != AUTO:
        return Choice(deployment.engine, "as configured")
    if deployment.external_url is not None:
        return Choice(choose_engine(deployment), "it has a `url`")
    found = sorted(_measured(deployment, host, engines), key=lambda pair: answer_s(pair[1]))
    usual, names = _by_kind(deployment, host, engines), [name for name, _ in found]
    is_usual_able = usual in engines and _can_serve(
        replace(deployment, engine=usual), engines[usual], host
    )
    if not found or (usual not in names and is_usual_able):
        seen = "it was not measured here," if names else "nothing of it was measured here,"
        others = f" {', '.join(names)} was, which alone decides nothing;" if names else ""
        return Choice(
            usual,
            f"by the kind of its weights; {seen}{others} run `iir-agent bench {deployment.model}`",
        )
    (name, best), slower = found[0], found[1:]
    than = "".join(f", {other} {answer_s(row):.1f} s" for other, row in slower)
    rank = "the fastest" if slower else "the only one"
    marks = "; something disturbed it" if best.is_disturbed else ""
    unknown = [each for each in _able(deployment, host, engines) if each not in names]
    left = f"; not measured: {', '.join(unknown)}" if unknown else ""
    return Choice(
        name,
        f"{rank} measured here: {answer_s(best):.1f} s for an answer of"
        f" {_ANSWER_TOKENS} tokens{than}{marks}{left}",
    )


def _by_kind(deployment: Deployment, host: HostFacts, engines: Plugins[Engine]) -> str:
    """Return the engine for the kind of weights: of those that load folders the first that can run here."""
    weights = deployment.weights
    if weights is None or weights.suffix.lower() == ".gguf":
        return choose_engine(deployment)
    order = _FOLDERS_ON_A_MAC if host.platform == "darwin" else _FOLDERS_ELSEWHERE
    known = [name for name in order if name in engines]
    for name in known:
        if _can_serve(replace(deployment, engine=name), engines[name], host):
            return name
    return known[0] if known else choose_engine(deployment)


def answer_s(figures: Bench) -> float:
    """Return how long a typical answer takes: the first token of the largest prompt, then 256 tokens."""
    ttft_ms = max((speed.ttft_ms for speed in figures.ttft), default=0.0)
    return ttft_ms / 1000 + _ANSWER_TOKENS / max(figures.tokens_per_s, 1e-3)


def shown_bench(deployment: Deployment, host: HostFacts) -> tuple[Bench, ...]:
    """Return what was measured here of a model, that of its present engine and configuration first.

    Args:
        deployment: with the engine that serves it.
        host: what was measured.
    """
    rows = [
        row.figures.model_copy(update={"is_current": _is_current(row, deployment)})
        for row in host.measured
        if row.model == deployment.model
    ]

    def rank(figures: Bench) -> tuple[bool, bool, int]:
        is_other = figures.engine != deployment.engine
        return is_other, not figures.is_current, -figures.measured_at

    return tuple(sorted(rows, key=rank)[:_MOST_SHOWN])


def is_pulled(deployment: Deployment, engine: Engine) -> bool:
    """Tell whether what was pulled, if anything, is what the engine starts with now."""
    pulled = deployment.pulled
    if pulled is None:
        return deployment.weights is not None
    launch = engine.launch(deployment, 0)
    container = None if launch is None else launch.container
    wanted = None if container is None else (container.image, container.repo)
    return wanted == (pulled.image, pulled.repo)


def _measured(
    deployment: Deployment, host: HostFacts, engines: Plugins[Engine]
) -> Iterator[tuple[str, Bench]]:
    """Yield the engines that can serve it and were measured doing so, each with its newest figures."""
    rows = [row for row in host.measured if row.model == deployment.model and not row.is_old]
    for name in _able(deployment, host, engines):
        as_it = replace(deployment, engine=name)
        mine = [row for row in rows if row.figures.engine == name and _is_current(row, as_it)]
        if mine:
            yield name, max(mine, key=lambda row: row.figures.measured_at).figures


def _able(deployment: Deployment, host: HostFacts, engines: Plugins[Engine]) -> list[str]:
    """Return the engines that could serve it here."""
    return [
        name
        for name in engines
        if name not in _NEVER_AUTO
        and _can_serve(replace(deployment, engine=name), engines[name], host)
    ]


def _can_serve(deployment: Deployment, engine: Engine, host: HostFacts) -> bool:
    if engine.unsupported_reason(host, deployment) is not None:
        return False
    return not engine.needs_weights(deployment) or is_pulled(deployment, engine)


def _is_current(row: Measured, deployment: Deployment) -> bool:
    """Tell whether it was measured as the model would run under the engine that measured it."""
    as_it = replace(deployment, engine=row.figures.engine)
    is_same = not row.is_old and row.config_hash == as_it.config_hash
    return is_same and row.figures.engine_version in {None, _version_now(as_it, row)}


def _version_now(deployment: Deployment, row: Measured) -> str | None:
    """Return the version that would run: of an engine in a container its image's; others are told apart before."""
    if deployment.engine != _IN_CONTAINER:
        return row.figures.engine_version
    launch = ENGINES[_IN_CONTAINER].launch(deployment, 0)
    container = None if launch is None else launch.container
    image = None if container is None else container.image
    return engine_version(_IN_CONTAINER, {}, image)
