"""All checks in order, for the command and for a running agent."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from local_agent.config import AgentConfig
from local_agent.config_file import ConfigError
from local_agent.doctor.agent import examine_running, find_running
from local_agent.doctor.containers import examine_containers, examine_contexts
from local_agent.doctor.finding import Finding
from local_agent.doctor.host import (
    examine_address,
    examine_disk,
    examine_memory,
    examine_port,
    memory_now,
)
from local_agent.doctor.mac import examine_mac, mac_facts
from local_agent.doctor.models import examine_models, plans
from local_agent.doctor.router import examine_router
from local_agent.memory.estimate import budget_mb
from local_agent.service.definition import plist_path
from local_agent.settings import AgentSettings
from local_agent.this_host import container_engine, read_config, this_host
from local_agent.weights.files import disk_free
from local_agent.weights.store import WeightStore
from shared.kit.clock import wall_time

_CONTAINER_S = 5.0


def examine(settings: AgentSettings, base_urls: Sequence[str]) -> Iterator[Finding]:
    """Yield what all checks find; blocks for seconds where something does not answer.

    Args:
        settings: of the agent; its file and its credential are read.
        base_urls: where an agent of this host may answer.
    """
    state = find_running(base_urls)
    yield from examine_running(state)
    yield from examine_port(
        settings.agent_host, settings.agent_port, None if state is None else state.base_url
    )
    yield from examine_address(settings.agent_host, settings.agent_url)
    yield from examine_router(settings, wall_time, state=state)
    name = settings.config_path.name
    try:
        config = read_config(settings)
    except ConfigError as error:
        if state is None or state.config != str(error):  # else it was said already
            fix = "mend it; then: iir-agent config check"
            yield Finding("configuration", "problem", str(error), fix)
        return
    is_there = settings.config_path.exists()
    text = f"{name} is good" if is_there else f"there is no {name}: the known models are used"
    yield Finding("configuration", "ok", text)
    yield from _examine_models(settings, config)


def _examine_models(settings: AgentSettings, config: AgentConfig) -> Iterator[Finding]:
    host = this_host(settings)
    if host.platform == "darwin":
        run = [Path(sys.executable), *map(Path, settings.interpreters.values()), plist_path()]
        yield from examine_mac(mac_facts(host.arch, [path for path in run if path.exists()]))
    found = plans(config, WeightStore(settings.models_dir), host)
    budget = budget_mb(host, budget=config.memory_budget, reserve=config.memory_reserve)
    yield from examine_models(found, budget)
    yield from examine_memory(budget, found, memory_now())
    yield examine_disk(settings.iir_home, found, disk_free)
    connect = container_engine(settings, _CONTAINER_S)
    yield from examine_containers(found, host, budget, connect)
    yield from examine_contexts(settings.environment(), found)
