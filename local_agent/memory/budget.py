"""Puts what the configuration says of memory to use."""

from __future__ import annotations

from local_agent.config import AgentConfig
from local_agent.domain import HostFacts
from local_agent.memory.estimate import budget_mb, reserve_mb
from local_agent.memory.residency import Residency


def use_config(residency: Residency, host: HostFacts, config: AgentConfig) -> None:
    """Set who stays for how long, the budget of all models, and how much the machine's own state counts."""
    residency.min_residency_s = config.min_residency_s
    residency.swap_after_s = config.swap_after_s
    budget, reserve = config.memory_budget, config.memory_reserve
    residency.ledger.set_budget(budget_mb(host, budget=budget, reserve=reserve))
    residency.room.machine.guard = config.memory_guard
    residency.room.machine.reserve_mb = reserve_mb(host, reserve)
