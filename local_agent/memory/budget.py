"""Puts what the configuration says of memory to use."""

from __future__ import annotations

from local_agent.config import AgentConfig
from local_agent.domain import Guard, HostFacts
from local_agent.memory.estimate import budget_mb, reserve_mb
from local_agent.memory.residency import Residency


def use_config(residency: Residency, host: HostFacts, config: AgentConfig) -> None:
    """Set who stays for how long, the budget of all models, and how much the machine's own state counts."""
    residency.min_residency_s = config.min_residency_s
    residency.swap_after_s = config.swap_after_s
    budget, reserve = config.memory_budget, config.memory_reserve
    residency.ledger.set_budget(budget_mb(host, budget=budget, reserve=reserve))
    residency.room.machine.guard = guard_of(host, config)
    residency.room.machine.reserve_mb = reserve_mb(host, reserve)


def guard_of(host: HostFacts, config: AgentConfig) -> Guard:
    """Return how much the machine's own state counts.

    A Mac has one memory for all. Elsewhere what is available says nothing of a GPU's memory, and mapped weights
    need not be in memory at once, so there it is for the user to say.
    """
    return config.memory_guard or ("normal" if host.platform == "darwin" else "off")
