"""Facts about the host that decide which engines can run."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable

import psutil

from local_agent.domain import HostFacts

ENGINE_MODULES = ("xllamacpp",)
"""Modules that engines ask for. They are looked for, never imported into the agent."""


def host_facts(modules: Iterable[str] = ENGINE_MODULES) -> HostFacts:
    """Return the facts, read once at the agent's start.

    Args:
        modules: top-level modules to look for.
    """
    return HostFacts(
        platform=platform.system().lower(),
        arch=platform.machine().lower(),
        memory_mb=psutil.virtual_memory().total // (1024 * 1024),
        modules=frozenset(name for name in modules if importlib.util.find_spec(name)),
    )
