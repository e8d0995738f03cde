"""How fast traffic comes back, with real processes: engines that are killed, agents that are lost.

`pytest -m integration -rP tests/integration/test_fleet_recovery.py` shows the figures.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest

from local_agent.process import free_port, tree
from local_agent.process.records import Records
from router.domain import Provider, Zone
from router.store import agents
from router.store.catalog import add_model, add_provider
from router.store.keys import make_key
from router.store.writer import RegistryWriter
from shared.kit.clock import monotonic
from tests.integration.stack import ROOT, machine_environment
from tests.router.process import RouterProcess, router_process
from tests.router.scenes import CHAT, chat
from tests.router.test_fleet_registry import row

pytestmark = pytest.mark.integration
CLIENTS = 8


class Program:
    """An engine or an agent as a process, on a port that stays."""

    def __init__(self, name: str, folder: Path, *arguments: str, **environment: str) -> None:
        self.name = name
        self.port = free_port()
        self._folder = folder
        self._arguments = arguments
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> float:
        """Start it, and return the time at which it answered."""
        arguments = [each.replace("PORT", str(self.port)) for each in self._arguments]
        values = {**self._environment, "PYTHONPATH": str(ROOT), "AGENT_PORT": str(self.port)}
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - starts within a millisecond
                [sys.executable, "-m", *arguments],
                cwd=self._folder,
                env=machine_environment(**values),
                stdout=log,
                stderr=log,
            )
        async with httpx.AsyncClient(trust_env=False, timeout=1) as client:
            with anyio.fail_after(30):
                while True:
                    try:
                        if (await client.get(f"{self.url}/health")).status_code == 200:
                            return monotonic()
                    except httpx.HTTPError:
                        await asyncio.sleep(0.01)

    def signal(self, number: signal.Signals) -> float:
        """Send a signal, and return when."""
        assert self._process is not None
        self._process.send_signal(number)
        if number is signal.SIGKILL:
            self._process.wait()
        return monotonic()

    def close(self) -> None:
        """End it and its workers."""
        if self._process is None or self._process.poll() is not None:
            return
        workers = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait()
        for worker in workers:
            worker.kill()
        # workers that it took over are not its children
        if home := self._environment.get("IIR_HOME"):
            left = tree.left_behind(Records(Path(home) / "run" / "workers").all())
            tree.end([process for group in left.values() for process in group], 0.0)


@dataclass(slots=True)
class Answer:
    """What became of one request of the load."""

    sent_at: float
    ended_at: float
    status: int
    endpoint: str
    attempts: int


@dataclass(slots=True)
class Load:
    """Clients that ask one after the other, without a pause, and without retries of their own."""

    answers: list[Answer] = field(default_factory=list)
    is_over: bool = False

    async def run(self, router: RouterProcess, model: str, timeout_s: float) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(self._ask_on, router, model, timeout_s)

    async def _ask_on(self, router: RouterProcess, model: str, timeout_s: float) -> None:
        async with httpx.AsyncClient(
            base_url=router.base_url, timeout=timeout_s, trust_env=False
        ) as client:
            while not self.is_over:
                sent_at = monotonic()
                try:
                    answer = await client.post(CHAT, json=chat(model))
                except httpx.TimeoutException:
                    self.answers.append(Answer(sent_at, monotonic(), 0, "", 0))
                    continue
                self.answers.append(
                    Answer(
                        sent_at,
                        monotonic(),
                        answer.status_code,
                        answer.headers.get("x-iir-endpoint", ""),
                        int(answer.headers.get("x-iir-attempts", "0")),
                    )
                )
                await asyncio.sleep(0.005)

    @property
    def lost(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]

    def first_from(self, endpoint: str, since: float) -> float | None:
        """Return how long after `since` this endpoint served again; None if it has not."""
        found = (a.ended_at - since for a in self.answers if _is(a, endpoint) and a.sent_at > since)
        return next(found, None)

    async def until_from(self, endpoint: str, since: float) -> None:
        """Wait until this endpoint has served what was sent after `since`."""
        with anyio.fail_after(20):
            while self.first_from(endpoint, since) is None:
                await asyncio.sleep(0.01)


def _is(answer: Answer, endpoint: str) -> bool:
    return answer.status == 200 and answer.endpoint == endpoint


@asynccontextmanager
async def under_load(
    router: RouterProcess, model: str = "tiny", *, timeout_s: float = 30.0
) -> AsyncIterator[Load]:
    load = Load()
    async with anyio.create_task_group() as group:
        group.start_soon(load.run, router, model, timeout_s)
        await asyncio.sleep(1.0)
        try:
            yield load
        finally:
            load.is_over = True


def engine(name: str, folder: Path) -> Program:
    arguments = ("--port", "PORT", "--model", "tiny", "--ttft-ms", "20")
    return Program(name, folder, "shared.testing.simulated_engine", *arguments)


def register(router_home: RouterProcess, *engines: Program) -> None:
    def change(connection: Any) -> None:
        for each in engines:
            provider = Provider(
                name=each.name, dialect="openai", base_url=each.url, zone=Zone.LOCAL
            )
            add_provider(connection, provider)
            add_model(connection, "tiny", row(each.name, "tiny"))

    write(router_home, change)


def write(router: RouterProcess, change: Callable[[Any], object]) -> None:
    writer = RegistryWriter(router.settings.store_url)
    try:
        writer.run_sync(change)
    finally:
        writer.close()


def show(**figures: object) -> None:
    shown = {name: round(v, 3) if isinstance(v, float) else v for name, v in figures.items()}
    print(shown)  # noqa: T201 - a measurement


async def test_an_engine_is_killed_beside_another_and_no_request_is_lost(tmp_path: Path) -> None:
    first, second = engine("first", tmp_path), engine("second", tmp_path)
    try:
        await first.start()
        await second.start()
        async with router_process(tmp_path / "home") as router:
            register(router, first, second)
            await asyncio.sleep(1)
            async with under_load(router) as load:
                killed_at = first.signal(signal.SIGKILL)
                await asyncio.sleep(3.0)
                back_at = await first.start()
                await load.until_from("first", back_at)
                await asyncio.sleep(0.5)
            again_s = load.first_from("first", back_at)
            assert again_s is not None
            retried = [a for a in load.answers if a.attempts > 1]
            show(
                requests=len(load.answers),
                lost=len(load.lost),
                retried=len(retried),
                slowest_ms=max(a.ended_at - a.sent_at for a in load.answers) * 1000,
                served_again_s=again_s,
            )
            assert [a for a in load.answers if _is(a, "second") and a.sent_at > killed_at]
            assert load.lost == [], load.lost[:5]
            assert again_s < 2.0
    finally:
        first.close()
        second.close()


async def test_the_only_engine_is_killed_and_serves_as_soon_as_it_is_back(tmp_path: Path) -> None:
    only = engine("only", tmp_path)
    try:
        await only.start()
        async with router_process(tmp_path / "home") as router:
            register(router, only)
            await asyncio.sleep(1)
            for away_s in (0.0, 3.0, 12.0):
                async with under_load(router) as load:
                    only.signal(signal.SIGKILL)
                    await asyncio.sleep(away_s)
                    back_at = await only.start()
                    await load.until_from("only", back_at)
                again_s = load.first_from("only", back_at)
                assert again_s is not None
                show(away_s=away_s, served_again_s=again_s, lost=len(load.lost))
                assert {a.status for a in load.lost} <= {502, 503}
                assert again_s < 2.0
    finally:
        only.close()


async def agent(name: str, folder: Path, router: RouterProcess) -> Program:
    home = folder / name
    (home / "agent").mkdir(parents=True)
    credential, _, _ = make_key()
    write(router, lambda c: agents.ensure_agent(c, name, credential))
    (home / "agent" / "credential").write_text(credential)
    (home / "agent" / "credential").chmod(0o600)
    model = {"id": "sim", "engine": "simulated", "preload": True, "options": {"ttft_ms": "20"}}
    config = {"known_models": False, "models": [model]}
    (home / "agent" / "agent.yaml").write_text(json.dumps(config))
    environment = {"IIR_HOME": str(home), "ROUTER_URL": router.base_url, "AGENT_NAME": name}
    return Program(name, folder, "local_agent", "serve", **environment)


@pytest.mark.parametrize("way", ["killed", "frozen"])
async def test_an_agent_is_lost_and_its_requests_go_elsewhere(tmp_path: Path, way: str) -> None:
    """A frozen one takes connections and answers nothing: only its lease tells."""
    ttl_s = 2.0
    started: list[Program] = []
    try:
        async with router_process(
            tmp_path / "home", ROUTER_LEASE_TTL_S=str(ttl_s), ROUTER_LEASE_RENEW_S="0.5"
        ) as router:
            for name in ("mac-a", "mac-b"):
                program = await agent(name, tmp_path, router)
                started.append(program)
                await program.start()
            with anyio.fail_after(20):
                while (await served_by(router)) != {"agent:mac-a", "agent:mac-b"}:
                    await asyncio.sleep(0.1)
            a = started[0]
            async with under_load(router, "sim", timeout_s=20) as load:
                number = signal.SIGKILL if way == "killed" else signal.SIGSTOP
                lost_at = a.signal(number)
                await asyncio.sleep(3 * ttl_s)
                if way == "killed":
                    back_at = await a.start()
                else:
                    back_at = a.signal(signal.SIGCONT)
                await load.until_from("agent:mac-a", back_at)
            again_s = load.first_from("agent:mac-a", back_at)
            meanwhile = [x for x in load.answers if lost_at < x.sent_at < back_at]
            show(
                way=way,
                lease_ttl_s=ttl_s,
                requests=len(load.answers),
                lost=len(load.lost),
                slowest_s=max(x.ended_at - x.sent_at for x in load.answers),
                served_elsewhere=sum(_is(x, "agent:mac-b") for x in meanwhile),
                served_again_s=again_s,
            )
            assert load.lost == [], load.lost[:5]
            assert max(x.ended_at - x.sent_at for x in load.answers) < 2 * ttl_s + 1.5
    finally:
        for program in started:
            program.close()


async def served_by(router: RouterProcess) -> set[str]:
    answers = [await router.client.post(CHAT, json=chat("sim")) for _ in range(8)]
    return {a.headers.get("x-iir-endpoint", "") for a in answers if a.status_code == 200}
