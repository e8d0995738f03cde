"""What all workers stand on, as the settings say: the host, the launchers, and the secrets to hide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from local_agent.containers import ContainerLauncher, EitherLauncher
from local_agent.containers.address import address_problem, candidates
from local_agent.domain import HostFacts
from local_agent.host.facts import host_facts
from local_agent.ports import ContainerClient, ProcessLauncher
from local_agent.process import LocalProcessLauncher
from local_agent.process.mask import Mask, secrets_of
from local_agent.settings import AgentSettings


def host(settings: AgentSettings) -> HostFacts:
    """Return what this host can do."""
    problem = address_problem(settings.environment(), Path.home())
    return replace(
        host_facts(),
        environments=frozenset(settings.interpreters),
        images=settings.images,
        container_problem=problem,
    )


def mask(settings: AgentSettings, access_token: str) -> Mask:
    """Return what hides the agent's secrets in any log that is shown."""
    told = (settings.hf_token, settings.iir_join_token)
    known = [secret.get_secret_value() for secret in told if secret is not None]
    return Mask([*known, access_token, *secrets_of(settings.environment())])


def launcher(settings: AgentSettings, agent_id: str, hide: Mask) -> ProcessLauncher:
    """Return what starts workers as processes or containers of the agent `agent_id`."""
    home = settings.iir_home
    processes = LocalProcessLauncher(
        run_dir=home / "run" / "workers",
        log_dir=home / "logs",
        env=settings.environment(),
        interpreters=settings.interpreters,
        hub=settings.hub_environment,
        mask=hide,
    )
    return EitherLauncher(processes, _containers(settings, agent_id, hide))


def _containers(settings: AgentSettings, agent_id: str, hide: Mask) -> ContainerLauncher:
    def connect() -> ContainerClient:
        from local_agent.containers import sdk  # noqa: PLC0415 - slow to load, and rarely used

        return sdk.connect(candidates(settings.environment(), Path.home()), timeout_s=15.0)

    return ContainerLauncher(
        agent_id=agent_id,
        connect=connect,
        run_dir=settings.iir_home / "run",
        log_dir=settings.iir_home / "logs",
        secrets=settings.hub_environment,
        mask=hide,
    )
