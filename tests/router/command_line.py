"""`iir` for tests: what runs it, and agents that registered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from router.store import agents
from router.store.writer import RegistryWriter
from shared.contracts.agents import AgentModel, Registration

Iir = Callable[..., str]


def register(writer: RegistryWriter, name: str, *models: AgentModel, at: float) -> int:
    """Let an agent register, as the router would write it."""
    writer.run_sync(lambda c: agents.add_agent(c, name))
    infos = writer.run_sync(agents.list_agents)
    row_id = next(info.record.row_id for info in infos if info.record.name == name)
    registration = Registration(
        incarnation=1,
        name=name,
        base_url="http://127.0.0.1:5000",
        access_token="t" * 32,
        models=models,
    )
    writer.run_sync(
        lambda c: agents.save_registration(
            c, row_id, f"id-{name}", registration, f"lease-{name}", now=lambda: at
        )
    )
    return row_id


def from_json(text: str) -> Any:
    return json.loads(text)
