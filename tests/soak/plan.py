"""What stands behind the router: engines, models, settings, and how much of it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from router.domain import DeploymentEntry, Provider, Scope, Zone
from router.store.catalog import add_model, add_provider
from router.store.keys import create_key
from shared.contracts.apis import APIS

SETTINGS: Mapping[str, Any] = {
    "ROUTER_CONNECT_TIMEOUT_S": "1",
    "ROUTER_FIRST_BYTE_TIMEOUT_S": "2",
    "ROUTER_IDLE_TIMEOUT_S": "2",
    "ROUTER_TOTAL_TIMEOUT_S": "6",
    "ROUTER_DEADLINE_S": "6",
    "ROUTER_ATTEMPTS": "3",
    "ROUTER_QUEUE": "6",
    "ROUTER_QUEUE_S": "1",
    "ROUTER_KEEP_ALIVE_S": "0.5",
    "ROUTER_PROBE_S": "2",
    "ROUTER_MAX_BODY_MB": "1",
    "ROUTER_PUBLIC_ROUTES": "metrics",
    "ROUTER_LEASE_TTL_S": "6",
    "ROUTER_LEASE_RENEW_S": "2",
}
"""Short, so that each limit is met often."""

PATIENCE_S = 10.0
"""How long a client waits for anything: the deadline of all attempts, and time for a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """One engine: `trouble` is the share of its requests that go wrong.

    `tokens` unset: answers are as long as the prompt. `comes_and_goes`: it is killed, or stands
    still for a moment, and comes again.
    """

    name: str
    models: tuple[str, ...]
    zone: Zone = Zone.LOCAL
    persona: str = "vllm"
    max_in_flight: int = 4
    ttft_ms: float = 20.0
    itl_ms: float = 8.0
    tokens: int | None = 16
    trouble: float = 0.0
    comes_and_goes: bool = False


ENGINES = (
    EnginePlan(name="steady", models=("three", "busy"), max_in_flight=3, trouble=0.02),
    EnginePlan(name="restless", models=("three", "two"), trouble=0.05, comes_and_goes=True),
    EnginePlan(name="moody", models=("three", "two"), trouble=0.35, zone=Zone.CLOUD),
    EnginePlan(name="terse", models=("two",), persona="llamacpp", trouble=0.15),
    EnginePlan(name="wide", models=("long",), itl_ms=0.0, tokens=None, trouble=0.05),
)
AGENT_MODEL = "on-agent"
MODELS = ("three", "two", "busy", "long", AGENT_MODEL)
KEYS = ("one", "two")


def register(connection: Connection, urls: Mapping[str, str]) -> dict[str, str]:
    """Write the registry, with engines at these URLs; returns the keys by name."""
    for engine in ENGINES:
        provider = Provider(
            name=engine.name,
            dialect="openai",
            base_url=urls[engine.name],
            zone=engine.zone,
            max_in_flight=engine.max_in_flight,
            apis=APIS,
        )
        add_provider(connection, provider)
        for model in engine.models:
            add_model(connection, model, DeploymentEntry(provider=engine.name, upstream_name=model))
    return {name: create_key(connection, name, {Scope.INFERENCE}) for name in KEYS}
