"""What the settings say of this host: its router, container engine and hub, and how models are pulled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from local_agent.bench.store import BenchStore, measured
from local_agent.bench.versions import engine_versions
from local_agent.config import AgentConfig
from local_agent.config_file import load_config
from local_agent.containers import ContainerLauncher, EitherLauncher
from local_agent.containers.address import address_problem, candidates
from local_agent.containers.pulling import ContainerPuller
from local_agent.control.credential import load_credential
from local_agent.control.trust import router_trust
from local_agent.domain import HostFacts, Measured
from local_agent.engines import ENGINES
from local_agent.host.facts import host_facts
from local_agent.ports import ProcessLauncher
from local_agent.process import LocalProcessLauncher
from local_agent.process.mask import Mask, secrets_of
from local_agent.pulls.puller import ModelPuller
from local_agent.pulls.repository import RepositoryPuller
from local_agent.settings import AgentSettings
from local_agent.weights.hub_cache import users_cache
from local_agent.weights.job import Puller
from local_agent.weights.store import WeightStore
from shared.http.origin import is_loopback

if TYPE_CHECKING:
    from local_agent.containers.sdk import DockerClient

_ENGINE_TIMEOUT_S = 15.0


class _Interpreters(Mapping[str, str]):
    """Those that are there now: engines are installed and removed while the agent runs."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings

    def __getitem__(self, engine: str) -> str:
        return self._settings.interpreters[engine]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings.interpreters)

    def __len__(self) -> int:
        return len(self._settings.interpreters)


def this_host(settings: AgentSettings) -> HostFacts:
    """Return the facts that decide which engines can run."""
    problem = address_problem(settings.environment(), _home())
    facts = host_facts()
    return replace(
        facts,
        environments=frozenset(settings.interpreters),
        images=settings.images,
        container_problem=problem,
        measured=what_was_measured(settings, facts.machine),
    )


def bench_store(settings: AgentSettings) -> BenchStore:
    """Return where measurements are kept."""
    return BenchStore(settings.iir_home / "agent" / "bench.json")


def what_was_measured(settings: AgentSettings, machine: str) -> tuple[Measured, ...]:
    """Return the measurements of models that were taken on this machine."""
    versions = engine_versions(ENGINES, settings.interpreters)
    return measured(bench_store(settings).rows(), machine, versions)


def container_engine(
    settings: AgentSettings, timeout_s: float = _ENGINE_TIMEOUT_S
) -> Callable[[], DockerClient]:
    """Return what finds the container engine; it blocks, and raises `ContainerError`."""

    def connect() -> DockerClient:
        from local_agent.containers import sdk  # noqa: PLC0415 - slow to load, and rarely used

        addresses = candidates(settings.environment(), _home())
        return sdk.connect(addresses, timeout_s=timeout_s, network=settings.agent_worker_network)

    return connect


def router_client(settings: AgentSettings) -> httpx.AsyncClient:
    """Return the client of the agent's router.

    Raises:
        CaFileUnusable: `ROUTER_CA_FILE` holds no certificates.
    """
    return httpx.AsyncClient(
        base_url=settings.router_url.rstrip("/"),
        timeout=5.0,
        trust_env=False,
        verify=router_trust(settings.router_ca_file),
    )


def secret_mask(settings: AgentSettings, access_token: str) -> Mask:
    """Return what hides the agent's secrets in any log that is shown."""
    told = (settings.hf_token, settings.iir_join_token)
    known = [secret.get_secret_value() for secret in told if secret is not None]
    return Mask([*known, access_token, *secrets_of(settings.environment())])


def worker_launcher(settings: AgentSettings, agent_id: str, mask: Mask) -> ProcessLauncher:
    """Return what starts workers; `agent_id` is whose containers they are."""
    run_dir, log_dir = settings.iir_home / "run", settings.iir_home / "logs"
    processes = LocalProcessLauncher(
        run_dir=run_dir / "workers",
        log_dir=log_dir,
        env=settings.environment(),
        interpreters=_Interpreters(settings),
        mask=mask,
    )
    containers = ContainerLauncher(
        agent_id=agent_id,
        connect=container_engine(settings),
        run_dir=run_dir,
        log_dir=log_dir,
        secrets=settings.hub_environment,
        network=settings.agent_worker_network,
        mask=mask,
        is_pulled_elsewhere=WeightStore(settings.models_dir).is_being_changed,
    )
    return EitherLauncher(processes, containers)


def model_puller(settings: AgentSettings, agent_id: str) -> ModelPuller:
    """Return what pulls models; `agent_id` is whose containers it starts."""
    token, env = settings.hf_token, settings.environment()
    return ModelPuller(
        settings.models_dir,
        files=Puller(
            settings.models_dir,
            env=env,
            hub_endpoint=settings.hf_endpoint,
            hub_token=None if token is None else token.get_secret_value(),
        ),
        repositories=RepositoryPuller(
            WeightStore(settings.models_dir).hub,
            users=users_cache(env),
            env=env,
            secrets=settings.hub_environment,
        ),
        containers=ContainerPuller(
            agent_id=agent_id,
            connect=container_engine(settings),
            run_dir=settings.iir_home / "run",
            secrets=settings.hub_environment,
        ),
    )


def read_config(settings: AgentSettings) -> AgentConfig:
    """Return the configuration; a file that nobody asked for need not exist.

    Raises:
        ConfigError: it is not valid, or `AGENT_CONFIG` names a file that is not there.
    """
    is_optional = settings.agent_config is None
    return load_config(settings.config_path, settings.environment(), may_be_missing=is_optional)


def drain_limit_s(settings: AgentSettings, config: AgentConfig) -> float:
    """Return the limit for draining: what was set, else the YAML's, else the default."""
    if config.drain_s is None or "agent_drain_s" in settings.model_fields_set:
        return settings.agent_drain_s
    return config.drain_s


def _home() -> Path:
    """Return the user's home folder; where nobody can tell it, one that is not there."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/nowhere")


def refuse_unreachable(settings: AgentSettings) -> None:
    """Refuse to listen to a network without a credential: nobody could use it rightfully.

    Raises:
        SystemExit: the reason is on stderr.
    """
    if is_loopback(settings.agent_host) or load_credential(settings.token_path) is not None:
        return
    raise SystemExit(
        f"iir-agent: refusing to listen on {settings.agent_host} without a credential for a router. "
        "Join one: iir-agent join URL. Or make one on the router's machine: "
        "iir agents add NAME --token-file FILE"
    )
