"""A router on loopback, with a registry of its own and simulated engines behind it."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Connection

from router.app import Router
from router.domain import DeploymentEntry, Provider, Zone
from router.settings import Settings, load_settings
from router.store.catalog import add_model, add_provider
from router.store.migrate import migrate
from router.store.prepare import prepare
from router.store.writer import RegistryWriter
from shared.kit.clock import Clock, monotonic
from shared.testing.serving import serving


@dataclass(slots=True)
class RunningRouter:
    """A router that serves: its address, its parts, and a client for it."""

    base_url: str
    router: Router
    settings: Settings
    client: httpx.AsyncClient

    def write(self, change: Callable[[Connection], Any]) -> Any:
        """Change the registry as the command line does: from another connection."""
        writer = RegistryWriter(self.settings.store_url)
        try:
            return writer.run_sync(change)
        finally:
            writer.close()

    async def catch_up(self) -> None:
        """Let the router see what was written."""
        await self.router.sync.look()


StartRouter = Callable[..., AbstractAsyncContextManager[RunningRouter]]


def starter(home: Path) -> StartRouter:
    """Return `start(upstream=URL, models=(…), clock=…, **settings)`, for routers with the state in `home`."""

    @asynccontextmanager
    async def start(
        *,
        upstream: str | None = None,
        models: tuple[str, ...] = (),
        clock: Clock = monotonic,
        **overrides: Any,
    ) -> AsyncIterator[RunningRouter]:
        settings = load_settings(
            iir_home=home, **{"router_breaker_failures": 1_000_000, **overrides}
        )
        install(Path(settings.store_url.removeprefix("sqlite:///")))
        router = Router(settings, clock=clock)
        async with (
            serving(router.asgi()) as base_url,
            httpx.AsyncClient(base_url=base_url, verify=False) as client,  # loads no certificates
        ):
            running = RunningRouter(base_url, router, settings, client)
            if upstream is not None:
                running.write(lambda c: register(c, upstream, models))
                await running.catch_up()
            yield running

    return start


def install(path: Path, *, is_seeded: bool = True) -> None:
    """Put a registry there, as a start prepares it or as a migration leaves it, unless there is one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_registry(is_seeded))


@cache
def _registry(is_seeded: bool) -> bytes:
    """Return the file of a registry; made once, since nearly every test needs one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "models.db"
        (prepare if is_seeded else migrate)(f"sqlite:///{path}")
        return path.read_bytes()


def register(connection: Connection, upstream: str, models: tuple[str, ...]) -> None:
    add_provider(
        connection,
        Provider(name="engine", dialect="openai", base_url=upstream, zone=Zone.LOCAL),
    )
    for model in models:
        add_model(connection, model, DeploymentEntry(provider="engine", upstream_name=model))
