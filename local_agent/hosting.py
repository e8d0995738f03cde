"""What engines need to know of this host, with what the settings add to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from local_agent.containers.address import address_problem
from local_agent.domain import HostFacts
from local_agent.host.facts import host_facts
from local_agent.settings import AgentSettings


def host_of(settings: AgentSettings) -> HostFacts:
    """Return the facts of this host, read now."""
    problem = address_problem(settings.environment(), Path.home())
    return replace(
        host_facts(),
        environments=frozenset(settings.interpreters),
        images=settings.images,
        container_problem=problem,
    )
