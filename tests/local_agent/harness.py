"""An agent on loopback, with a home of its own and simulated engines behind it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT
from typing import Any

import anyio
import httpx

from local_agent.app import Agent
from local_agent.config_file import load_config
from local_agent.control.lease_core import LeaseStatus
from local_agent.domain import WorkerState, WorkerView
from local_agent.lifecycle import FailureRule
from local_agent.settings import load_settings
from local_agent.worker import Limits
from shared.contracts.apis import DEFAULT_APIS
from shared.http.serve import bind
from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.journal import Seen
from shared.testing.serving import serving

AWAY = "http://127.0.0.1:9"  # nobody listens on the port `discard`
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello small world"}]
PATIENCE_S = 15.0
ROOT = Path(__file__).parents[2]
# How a simulated engine fails, and with which status and code an agent tells its client.
ENGINE_FAILURES: list[tuple[str, int, str]] = [
    ("status:code=500,shape=html", 500, "upstream_error"),
    ("status:code=400,shape=openai", 400, "simulated"),
    ("status:code=401,shape=openai", 502, "simulated"),
    ("status:code=403,shape=text", 502, "upstream_error"),
    ("status:code=429,shape=openai,retry_after=7", 429, "simulated"),
    ("html_502", 502, "upstream_error"),
    ("redirect", 502, "upstream_failed"),
    ("garbage", 502, "upstream_failed"),
    ("bad_utf8", 502, "upstream_failed"),
    ("bad_json", 502, "upstream_failed"),
    ("empty_200", 502, "upstream_failed"),
    ("cut", 503, "worker_gone"),
    ("cut:reset=true", 503, "worker_gone"),
    ("cut:after=1", 503, "worker_gone"),
]


async def until(is_true: Callable[[], object]) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: it takes too long.
    """
    with anyio.fail_after(PATIENCE_S):
        while not is_true():
            await anyio.sleep(0.005)


@dataclass(slots=True)
class RunningAgent:
    """An agent that serves: its address, its parts, a client for it, and the engine behind it.

    `worker_url` is where the engine itself answers.
    """

    base_url: str
    agent: Agent
    client: httpx.AsyncClient
    engine: SimulatedEngine
    worker_url: str
    home: Path

    def worker(self, model: str) -> WorkerView:
        """Return what is observed of a model's worker."""
        return next(view for view in self.agent.supervisor.workers() if view.model == model)

    async def until(self, model: str, state: WorkerState) -> WorkerView:
        """Wait until a model's worker is in a state."""
        supervisor = self.agent.supervisor
        with anyio.fail_after(PATIENCE_S):
            while not any(v.model == model and v.state is state for v in supervisor.workers()):
                await supervisor.changed(supervisor.version)
        return self.worker(model)

    async def until_lease(self, status: LeaseStatus) -> None:
        """Wait until the agent stands so with its router."""
        await until(lambda: self.agent.lease.status is status)

    async def until_idle(self) -> None:
        """Wait until no request is in flight."""
        workers = self.agent.supervisor.workers
        await until(lambda: not any(view.in_flight for view in workers()))

    @property
    def sent(self) -> Seen:
        """Return the last request of a client that the engine got: probes come in between."""
        found = [seen for seen in self.engine.requests if seen.method == "POST"]
        assert found, "the engine got no request of a client"
        return found[-1]

    async def left_by(
        self, client: httpx.AsyncClient, body: dict[str, object], *, has_begun: bool
    ) -> None:
        """Send a chat and hang up: once its answer has begun, or as soon as the engine has it."""
        begun = anyio.Event()

        async def ask() -> None:
            async with client.stream("POST", CHAT, json=body) as response:
                assert response.status_code == 200
                async for _ in response.aiter_bytes():
                    begun.set()

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await until(begun.is_set if has_begun else lambda: self.engine.slots.running)
            group.cancel_scope.cancel()

    def kill(self, model: str) -> None:
        """Kill a model's worker."""
        pid = self.worker(model).pid
        assert pid is not None, "0 would be the tests' own process group"
        os.kill(pid, signal.SIGKILL)

    def rewrite(self, *models: dict[str, Any], **fields: Any) -> None:
        """Write another YAML file; the agent notices within two seconds."""
        write_yaml(self.home, models, fields)


StartAgent = Callable[..., AbstractAsyncContextManager[RunningAgent]]


def external(engine_url: str, *, model: str = "tiny", **fields: Any) -> dict[str, Any]:
    """Return the YAML entry of a model on a server that runs already."""
    return {"id": model, "engine": "external", "url": engine_url, **fields}


def write_yaml(home: Path, models: tuple[dict[str, Any], ...], fields: dict[str, Any]) -> None:
    """Write the agent's file (JSON is YAML)."""
    path = home / "agent" / "agent.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"known_models": False, "models": list(models), **fields}))


def starter(home: Path) -> StartAgent:
    """Return `start(*models, engine=…, **settings)`, for agents with the state in `home`.

    Without models there is one, `tiny` (alias `default`), on a simulated engine that knows it as
    `engine/tiny` and of which the agent is told that it speaks `apis`.
    """

    @asynccontextmanager
    async def start(
        *models: dict[str, Any],
        engine: EngineOptions | None = None,
        fields: dict[str, Any] | None = None,
        first_s: float = 0.3,
        quarantine_at: int = 5,
        apis: tuple[str, ...] = DEFAULT_APIS,
        **overrides: Any,
    ) -> AsyncIterator[RunningAgent]:
        options = engine or EngineOptions(models=("engine/tiny",))
        simulated = SimulatedEngine(options, wall=lambda: 1.7e9)
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(running(simulated))
            if not models:
                upstream_name = options.models[0]
                names: dict[str, Any] = {"aliases": ["default"], "upstream_name": upstream_name}
                models = (external(url, apis=list(apis), **names),)
            write_yaml(home, models, fields or {})
            settings = load_settings(**{"iir_home": home, "router_url": AWAY, **overrides})
            listener = bind("127.0.0.1", 0)
            agent = Agent(
                settings,
                load_config(settings.config_path, settings.environment()),
                listener.getsockname()[1],
                limits=Limits(stop_grace_s=0.5, health_every_s=0.5),
                rule=FailureRule(first_s=first_s, quarantine_at=quarantine_at),
            )
            base_url = await stack.enter_async_context(serving(agent.asgi(), listener=listener))
            client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=base_url, timeout=30, trust_env=False, verify=False)
            )
            started = RunningAgent(base_url, agent, client, simulated, url, home)
            for model in models:
                if model["engine"] == "external":
                    await started.until(model["id"], WorkerState.EXTERNAL)
            yield started

    return start


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    output: str


def command(agent: RunningAgent, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return how `iir-agent` is called for this agent: the line, and its environment."""
    port = agent.base_url.rpartition(":")[2]
    env = {"PATH": os.defpath, "IIR_HOME": str(agent.home), "AGENT_PORT": port}
    return [sys.executable, "-m", "local_agent", *arguments], env


async def cli(agent: RunningAgent, *arguments: str) -> Done:
    """Run `iir-agent` against this agent, as a process of its own."""
    line, env = command(agent, *arguments)
    with anyio.fail_after(60):
        done = await anyio.run_process(line, env=env, cwd=ROOT, check=False, stderr=STDOUT)
    return Done(done.returncode, done.stdout.decode())


async def shown(agent: RunningAgent, *arguments: str) -> Any:
    done = await cli(agent, *arguments, "--json")
    assert done.code == 0, done.output
    return json.loads(done.output)
