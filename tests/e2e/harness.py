"""A router and an agent in one process, on ports that stay when either starts again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from local_agent.process import free_port
from router.app import Router
from router.settings import load_settings
from router.store.agents import ensure_agent
from router.store.keys import make_key
from router.store.prepare import prepare
from router.store.writer import RegistryWriter
from shared.http.serve import bind
from shared.testing.serving import serving
from tests.local_agent.harness import RunningAgent, starter
from tests.router.harness import RunningRouter

QUICK = {"router_lease_renew_s": 0.1, "router_lease_ttl_s": 0.6, "router_catalog_poll_s": 0.05}


class Site:
    """Where both run: homes, the router's port, and the agent's credential."""

    def __init__(self, folder: Path) -> None:
        self.router_home = folder / "router-home"
        self.agent_home = folder / "agent-home"
        self.router_port = free_port()
        self.router_url = f"http://127.0.0.1:{self.router_port}"
        self.credential_path = self.agent_home / "agent" / "credential"
        self.give_credential()

    def give_credential(self) -> None:
        """Make a credential known to the registry and give it to the agent."""
        store_url = load_settings(iir_home=self.router_home).store_url
        self.router_home.mkdir(exist_ok=True)
        prepare(store_url)
        credential, _, _ = make_key()
        writer = RegistryWriter(store_url)
        try:
            writer.run_sync(lambda connection: ensure_agent(connection, "mac", credential))
        finally:
            writer.close()
        self.credential_path.parent.mkdir(parents=True, exist_ok=True)
        self.credential_path.write_text(credential)

    @asynccontextmanager
    async def router(self, **overrides: Any) -> AsyncIterator[RunningRouter]:
        """Run the router on its port."""
        settings = load_settings(**{"iir_home": self.router_home, **QUICK, **overrides})
        router = Router(settings)
        listener = bind("127.0.0.1", self.router_port)
        async with (
            serving(router.asgi(), listener=listener) as base_url,
            httpx.AsyncClient(base_url=base_url, timeout=30, trust_env=False) as client,
        ):
            yield RunningRouter(base_url, router, settings, client)

    def agent(self, *models: Any, **overrides: Any) -> AbstractAsyncContextManager[RunningAgent]:
        """Run the agent."""
        start = starter(self.agent_home)
        return start(*models, **{"router_url": self.router_url, **overrides})


async def statuses(router: RunningRouter) -> dict[str, str]:
    """Return the status of each model that the router lists."""
    data = (await router.client.get("/v1/models")).json()["data"]
    return {model["id"]: model.get("status", {}).get("value", "") for model in data}
