"""Engines and the agent as processes, which may be killed and come again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import anyio
import httpx
import psutil
from sqlalchemy import Connection

from router.store.agents import ensure_agent
from router.store.keys import make_key
from tests.router.process import ROOT
from tests.soak.plan import AGENT_MODEL, ENGINES, EnginePlan

_START_S = 30.0


class Engine:
    """One engine: the process of the moment, always on the same port."""

    def __init__(self, plan: EnginePlan, *, seed: int, folder: Path) -> None:
        self.plan = plan
        self.url = ""
        self.ends = 0
        self.seen_path = folder / f"{plan.name}.seen"
        self._seed = f"{seed}-{plan.name}"
        self._log = folder / f"{plan.name}.log"
        self._process: Process | None = None

    async def start(self) -> None:
        """Start it, or start it again."""
        port = self.url.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", "tests.soak.engine", self.plan.name, "--port", port]
        command += ["--seed", f"{self._seed}-{self.ends}", "--seen", str(self.seen_path)]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        with anyio.fail_after(_START_S):
            self.url = (await self._process.stdout.readline()).decode().strip()
        assert self.url, self._log.read_text()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        process = self._process
        assert process is not None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        self.ends += 1
        return await process.wait()

    async def kill(self) -> None:
        """End it if it runs."""
        if self._process is not None and self._process.returncode is None:
            await self.stop(signal.SIGKILL)

    def connections(self) -> int:
        """Return how many connections are open to it."""
        assert self._process is not None
        found = psutil.Process(self._process.pid).net_connections(kind="tcp")
        return sum(each.status != psutil.CONN_LISTEN for each in found)

    def seen(self) -> Counter[str]:
        """Return how often it got a request with each id."""
        return Counter(self.seen_path.read_text().split()) if self.seen_path.exists() else Counter()

    async def disturb(self, rng: Random, stop: asyncio.Event) -> None:
        """Kill it again and again, or let it stand still, until told to stop; it is well then."""
        while not await is_set_within(stop, rng.uniform(4, 12)):
            is_kill, pause_s = rng.random() < 0.7, rng.uniform(0.2, 3)
            await (self._restart(pause_s) if is_kill else self._hold(pause_s))

    async def _restart(self, pause_s: float) -> None:
        await self.stop(signal.SIGKILL)
        await asyncio.sleep(pause_s)
        await self.start()

    async def _hold(self, pause_s: float) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(pause_s)
        self._process.send_signal(signal.SIGCONT)


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event for so long, and tell whether it came."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


@contextlib.asynccontextmanager
async def engines(seed: int, folder: Path) -> AsyncIterator[list[Engine]]:
    """Start all engines; those that still run are killed at the end."""
    made = [Engine(plan, seed=seed, folder=folder) for plan in ENGINES]
    try:
        for engine in made:
            await engine.start()
        yield made
    finally:
        for engine in made:
            await engine.kill()


def invite(connection: Connection, home: Path) -> None:
    """Let the agent with this home register, and give it a simulated engine."""
    credential, _, _ = make_key()
    ensure_agent(connection, "soak", credential)
    folder = home / "agent"
    folder.mkdir(parents=True)
    (folder / "credential").write_text(credential)
    model = {"id": AGENT_MODEL, "engine": "simulated", "preload": True}
    (folder / "agent.yaml").write_text(json.dumps({"models": [model]}))


@contextlib.asynccontextmanager
async def agent(home: Path, router_url: str) -> AsyncIterator[None]:
    """Run an agent beside the router; enters when the router serves its model."""
    variables = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "IIR_HOME": str(home)}
    variables |= {"ROUTER_URL": router_url, "AGENT_PORT": "0", "AGENT_DRAIN_S": "1"}
    with (home / "agent.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "local_agent", "serve"), env=variables, cwd=home, stderr=log
        )
    try:
        with anyio.fail_after(_START_S):
            await _registered(router_url)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _registered(router_url: str) -> None:
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        while (await client.get(f"{router_url}/readyz")).json()["agents"] == 0:
            await asyncio.sleep(0.1)
