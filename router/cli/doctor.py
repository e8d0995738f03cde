"""`iir doctor`: what is wrong, and how to put it right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import typer

from router.cli.clusters import cluster_models
from router.cli.listing import agent_state
from router.cli.output import AsJson, CommandFailed, write_json, write_table
from router.cli.router_probe import Answer, probe_router
from router.cli.upstream_models import CredentialRefused
from router.domain import LLMD, Catalog, Provider
from router.fleet.endpoints import ProviderEndpoints
from router.settings import Settings, load_settings
from router.store.agents import AgentInfo, list_agents
from router.store.database import Connection
from router.store.errors import StoreError
from router.store.migrate import check
from router.store.reader import RegistryReader, load_catalog
from shared.http.origin import is_loopback
from shared.kit.clock import wall_time
from shared.kit.run_file import read_run_file

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `fix` is the next step if there is one."""

    check: str
    level: Level
    message: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Registry:
    """What the checks look at."""

    catalog: Catalog
    agents: tuple[AgentInfo, ...]


def doctor(as_json: AsJson = False) -> None:
    """Check the installation; exit 1 if something is broken."""
    settings = load_settings()
    findings = list(examine(settings, now=wall_time(), ask=probe_router))
    if as_json:
        write_json([asdict(finding) for finding in findings])
    else:
        write_table(
            ("check", "level", "finding", "fix"),
            [(f.check, f.level, f.message, f.fix) for f in findings],
            empty="",
        )
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def examine(
    settings: Settings, *, now: float, ask: Callable[[str, int], Answer]
) -> Iterator[Finding]:
    """Yield what all checks find.

    Args:
        settings: of the router to look at.
        now: seconds since 1970.
        ask: asks the router at a host and port how it is.
    """
    try:
        registry = _load(settings)
    except StoreError as error:
        yield Finding("registry", "error", str(error), "iir migrate")
    else:
        yield Finding("registry", "ok", "reachable, intact and up to date")
        yield _models(registry)
        yield from _credentials(registry.catalog, settings)
        yield from _clusters(registry.catalog, settings)
        yield _keys(registry.catalog, settings)
        yield from _agents(registry, now - 2 * settings.router_lease_ttl_s)
    yield _router(settings, ask)


def _load(settings: Settings) -> Registry:
    def fetch(connection: Connection) -> Registry:
        check(connection)
        return Registry(load_catalog(connection), tuple(list_agents(connection)))

    reader = RegistryReader(settings.store_url)
    try:
        reader.check_integrity()
        return reader.run(fetch)
    finally:
        reader.close()


def _models(registry: Registry) -> Finding:
    catalog = registry.catalog
    by_agents = sum(
        len(agent.record.registration.models)
        for agent in registry.agents
        if agent.revoked_at is None and agent.record.registration is not None
    )
    counts = f"{len(catalog.models)} models in the registry, {by_agents} of agents"
    if not catalog.providers:
        return Finding("catalog", "warning", "there are no providers", "iir seed")
    has_cluster = any(provider.dialect == LLMD for provider in catalog.providers.values())
    if not catalog.models and not by_agents and not has_cluster:
        return Finding(
            "catalog",
            "warning",
            "there are no models",
            "start an agent, or: iir models add ID --provider NAME",
        )
    return Finding("catalog", "ok", counts)


def _credentials(catalog: Catalog, settings: Settings) -> Iterator[Finding]:
    for provider in catalog.providers.values():
        if provider.key_env is None:
            continue
        check = f"provider {provider.name}"
        if settings.credential(provider.key_env) is None:
            text = f"{provider.key_env} is not set here, so its models can't be used"
            yield Finding(check, "warning", text, f"set {provider.key_env} and restart the router")
        else:
            yield Finding(check, "ok", f"{provider.key_env} is set")


def _clusters(catalog: Catalog, settings: Settings) -> Iterator[Finding]:
    row = catalog.providers.get(LLMD)
    if settings.llmd_endpoint is not None and (row is None or row.dialect != LLMD):
        text = (
            "LLMD_ENDPOINT is set, but the provider `llmd` is not there or speaks another dialect"
        )
        fix = "iir providers remove llmd" if row else "start the router: it adds it"
        yield Finding("provider llmd", "warning", text, fix)
    clusters = [each for each in catalog.providers.values() if each.dialect == LLMD]
    endpoint_of = ProviderEndpoints(settings)
    found, problems = cluster_models(clusters, settings)
    for cluster in clusters:
        served = [model for provider, model in found if provider is cluster]
        problem = problems.get(cluster.name)
        yield _cluster(cluster, endpoint_of(cluster) is not None, served, problem)


def _cluster(
    cluster: Provider, has_address: bool, served: Sequence[str], problem: CommandFailed | None
) -> Finding:
    check = f"cluster {cluster.name}"
    if not has_address:
        text = "its address or credential is not set here, so its models can't be used"
        fix = "set LLMD_ENDPOINT in .env (in the environment: restart the router), or: iir providers remove NAME"
        return Finding(check, "warning", text, fix)
    if problem is None and served:
        more = f" and {len(served) - 3} more" if len(served) > 3 else ""
        return Finding(check, "ok", f"serves {', '.join(served[:3])}{more}")
    fix = "kubectl get pods in its namespace; is the address right: iir providers list"
    if isinstance(problem, CredentialRefused):
        fix = _credential_fix(cluster)
    text = "it answers, and serves no model" if problem is None else str(problem)
    return Finding(check, "warning", text, fix)


def _credential_fix(cluster: Provider) -> str:
    """Return how a cluster gets a credential that it takes."""
    variable = cluster.key_env or ("LLMD_API_KEY" if cluster.name == LLMD else None)
    if variable is None:
        return f"it wants a credential: iir providers set {cluster.name} --key-env VARIABLE"
    return f"set {variable} to what its gateway takes (vLLM: --api-key) and restart the router"


def _keys(catalog: Catalog, settings: Settings) -> Finding:
    fix = "iir keys create --name NAME"
    if not catalog.is_open:
        in_force = sum(key.agent is None for key in catalog.keys.values())
        if in_force:
            return Finding("keys", "ok", f"keys in force: {in_force}")
        return Finding("keys", "warning", "all keys are revoked: no client gets in", fix)
    if is_loopback(settings.router_host):
        return Finding("keys", "ok", "open: programs on this machine need no key")
    text = "ROUTER_HOST is not loopback and there is no key: the router refuses to start"
    return Finding("keys", "error", text, fix)


def _agents(registry: Registry, oldest: float) -> Iterator[Finding]:
    in_force = [agent for agent in registry.agents if agent.revoked_at is None]
    if not in_force:
        yield Finding(
            "agents",
            "warning",
            "no agent may register, so there are no local models",
            "iir agents add NAME --token-file PATH",
        )
    for agent in in_force:
        state = agent_state(agent, oldest)
        check = f"agent {agent.record.name}"
        if state in {"ready", "draining"}:
            yield Finding(check, "ok", f"holds a lease ({state})")
        else:
            fix = "start it: iir-agent serve; then look at its /readyz"
            yield Finding(check, "warning", state, fix)


def _router(settings: Settings, ask: Callable[[str, int], Answer]) -> Finding:
    configured = Answer("nobody")
    if settings.router_port:
        configured = ask(settings.router_host, settings.router_port)
    if configured.kind in {"nobody", "stranger"}:
        running = _running_router(settings, ask)
        if running is not None:
            return running
        if settings.router_port == 0:
            return Finding("router", "ok", "ROUTER_PORT is 0 (any free port), and none runs")
    return _judged(configured, f"port {settings.router_port}")


def _running_router(settings: Settings, ask: Callable[[str, int], Answer]) -> Finding | None:
    """Look where the router itself says that it listens, which flags may have chosen."""
    found = read_run_file(settings.iir_home / "run" / "router.json")
    if found is None:
        return None
    answer = ask(found.host or settings.router_host, found.port)
    if answer.kind in {"nobody", "stranger"}:
        return None  # it was killed, and left its file behind
    return _judged(answer, f"port {found.port} (here ROUTER_PORT is {settings.router_port})")


def _judged(answer: Answer, where: str) -> Finding:
    if answer.kind == "nobody":
        return Finding("router", "warning", f"nothing answers on {where}", "iir serve")
    if answer.kind == "stranger":
        text = f"another program has {where}"
        return Finding("router", "error", text, "stop it, or set ROUTER_PORT to another port")
    if answer.problem is not None:
        return Finding("router", "error", f"its registry: {answer.problem}", "see `registry`")
    if answer.kind == "unready":
        return Finding("router", "warning", "it is starting or draining", "try again in a moment")
    return Finding("router", "ok", f"ready on {where}")
