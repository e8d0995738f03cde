"""Agents as the router sees them, message by message, and a router with one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from router.store.agents import add_agent
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.router.harness import RunningRouter, StartRouter
from tests.router.scenes import bearer

TOKEN = "token-of-the-agent-0123456789"
PULL = "iir-agent pull big"


@dataclass
class Agent:
    """An agent as the router sees it; each call is one message."""

    client: httpx.AsyncClient
    credential: str
    base_url: str
    agent_id: str = "11111111-1111-4111-8111-111111111111"
    incarnation: int = 1_700_000_000_000
    models: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"id": "tiny", "aliases": ["default"], "status": "loaded", "context_tokens": 2048},
            {"id": "big", "is_pulled": False, "pull_command": PULL},
        ]
    )
    lease_id: str = ""
    seq: int = 0

    @property
    def path(self) -> str:
        return f"/internal/v1/agents/{self.agent_id}"

    async def register(self, **fields: Any) -> httpx.Response:
        body = {
            "protocol": 1,
            "incarnation": self.incarnation,
            "name": "my mac",
            "base_url": self.base_url,
            "access_token": TOKEN,
            "models": self.models,
            **fields,
        }
        answer = await self.client.put(self.path, json=body, headers=bearer(self.credential))
        if answer.status_code == 200:
            self.lease_id = answer.json()["lease_id"]
            self.seq = 0
        return answer

    async def renew(self, **fields: Any) -> httpx.Response:
        self.seq += 1
        body = {
            "lease_id": self.lease_id,
            "incarnation": self.incarnation,
            "seq": self.seq,
            **fields,
        }
        path = f"{self.path}/lease"
        return await self.client.put(path, json=body, headers=bearer(self.credential))

    async def release(self) -> httpx.Response:
        return await self.client.delete(f"{self.path}/lease", headers=bearer(self.credential))


async def agent_of(router: RunningRouter, base_url: str, name: str = "mac") -> Agent:
    credential = router.write(lambda c: add_agent(c, name))
    await router.catch_up()
    return Agent(router.client, credential, base_url)


@dataclass
class Scene:
    """A router, an engine that plays the agent's data side, and the agent's messages."""

    router: RunningRouter
    engine: SimulatedEngine
    agent: Agent

    @property
    def client(self) -> httpx.AsyncClient:
        return self.router.client


@asynccontextmanager
async def scene_of(start: StartRouter, **settings: Any) -> AsyncIterator[Scene]:
    engine = SimulatedEngine(EngineOptions(models=("tiny",), api_key=TOKEN))
    async with running(engine) as url, start(**settings) as router:
        yield Scene(router, engine, await agent_of(router, url))


class FailingStore:
    """A lease store on a full disk."""

    def __init__(self) -> None:
        self.is_full = True
        self.saved: list[Any] = []

    async def save_registration(self, *_: Any) -> None:
        self._check()

    async def save_heartbeats(self, beats: Any) -> None:
        self._check()
        self.saved.append(beats)

    async def release(self, row_id: int) -> None:
        self._check()

    def _check(self) -> None:
        if self.is_full:
            raise OSError("the disk is full")
