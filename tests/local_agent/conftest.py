"""Fakes of the agent's ports, and a stage to play on."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import anyio
import pytest
from typer.testing import CliRunner, Result

from local_agent.cli.app import app
from local_agent.domain import Deployment, HostFacts, ModelId, Unended
from local_agent.engines import ENGINES
from local_agent.lifecycle import FailureRule
from local_agent.ports import Launch, Left, Wanted
from local_agent.supervisor import Supervisor
from local_agent.worker import Limits, Surroundings
from tests.local_agent.command_line import GGUF, Run, StandInAgent
from tests.local_agent.fake_hub import FakeHub, Script
from tests.local_agent.harness import StartAgent, starter


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeProcess:
    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.host = "127.0.0.1"
        self.port = port
        self.exit_cause: str | None = None
        self.is_adopted = False
        self.code: int | None = None
        self.lines: list[str] = []
        self.graces: list[float] = []
        self.hold_stop: anyio.Event | None = None
        self.left: str | None = None
        self._ended = anyio.Event()

    def end(self, code: int, *lines: str) -> None:
        self.code, self.lines = code, list(lines)
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.code is not None
        return self.code

    async def stop(self, grace_s: float) -> str | None:
        self.graces.append(grace_s)
        if self.hold_stop is not None:
            await self.hold_stop.wait()
        if self.code is None:
            self.end(-15)
        return self.left

    async def is_gone(self) -> bool:
        await anyio.lowlevel.checkpoint()
        return self.left is None

    def log_tail(self, lines: int) -> list[str]:
        return self.lines[-lines:]


class FakeLauncher:
    def __init__(self) -> None:
        self.launched: list[tuple[str, Launch, str, int]] = []
        self.processes: list[FakeProcess] = []
        self.error: OSError | None = None
        self.reaped = 0
        self.left: dict[str, Left] = {}
        self.kept: list[str] = []
        self.leaked: dict[str, Unended] = {}

    async def launch(
        self, name: str, launch: Launch, *, config_hash: str, port: int
    ) -> FakeProcess:
        await anyio.lowlevel.checkpoint()
        self.launched.append((name, launch, config_hash, port))
        if self.error is not None:
            raise self.error
        left = self.left.pop(name, None)
        process = FakeProcess(100 + len(self.processes), left.port if left else port)
        process.is_adopted = left is not None
        self.processes.append(process)
        return process

    async def left_running(self, wanted: Mapping[str, Wanted]) -> dict[str, Left]:
        return {name: one for name, one in self.left.items() if name in wanted}

    async def reap_orphans(self, keep: Collection[str] = ()) -> list[str]:
        self.reaped += 1
        self.kept = list(keep)
        self.left = {name: one for name, one in self.left.items() if name in keep}
        return []

    async def unended(self) -> dict[str, Unended]:
        return self.leaked

    def alive(self) -> list[FakeProcess]:
        return [process for process in self.processes if process.code is None]


class FakeProber:
    def __init__(self) -> None:
        self.is_up = True
        self.generates = True
        self.asked: list[str] = []
        self.asked_for_tokens: list[tuple[str, bytes]] = []
        self.metrics: str | None = None
        self.asked_load: list[str] = []

    async def ok(self, url: str, timeout_s: float) -> bool:
        assert timeout_s > 0
        await anyio.lowlevel.checkpoint()
        self.asked.append(url)
        return self.is_up

    async def answers(self, url: str, body: bytes, timeout_s: float) -> bool:
        assert timeout_s > 0
        await anyio.lowlevel.checkpoint()
        self.asked_for_tokens.append((url, body))
        return self.generates

    async def text(self, url: str, timeout_s: float, most_bytes: int) -> str | None:
        assert min(timeout_s, most_bytes) > 0
        await anyio.lowlevel.checkpoint()
        self.asked_load.append(url)
        return self.metrics


class Stage:
    """Everything around a supervisor, as fakes with short times."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.launcher = FakeLauncher()
        self.prober = FakeProber()
        self.host = HostFacts(platform="linux", arch="x86_64", memory_mb=8000)
        self.limits = Limits(
            loading_s=5, loading_probe_every_s=0.001, health_every_s=0.001, stop_grace_s=1.5
        )
        self.rule = FailureRule()

    def around(self) -> Surroundings:
        return Surroundings(
            launcher=self.launcher,
            prober=self.prober,
            clock=self.clock,
            rng=Random(1),
            limits=self.limits,
            rule=self.rule,
            free_port=lambda: 4321,
        )

    def supervisor(self, *deployments: Deployment) -> Supervisor:
        supervisor = Supervisor(
            engines=ENGINES,
            host=self.host,
            around=self.around(),
            wall=lambda: 5.0,
        )
        supervisor.set_desired(deployments)
        return supervisor

    def has_asked(self, times: int) -> bool:
        """Tell whether workers were asked for their health so often."""
        return len(self.prober.asked) >= times

    def limit(self, **changes: float) -> None:
        self.limits = replace(self.limits, **changes)  # type: ignore[arg-type] # strikes is an int

    def deployment(
        self,
        model: str = "m",
        *,
        engine: str = "simulated",
        aliases: tuple[str, ...] = (),
        preload: bool = False,
        weights: Path | None = None,
        external_url: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Deployment:
        return Deployment(
            model=ModelId(model),
            engine=engine,
            aliases=aliases,
            preload=preload,
            weights=weights,
            external_url=external_url,
            options=options or {},
        )


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def start_agent(tmp_path: Path) -> StartAgent:
    """Return a function that starts agents; see `tests.local_agent.harness.starter`."""
    return starter(tmp_path / "agent-home")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty IIR_HOME, far from this machine's own settings, agent and index."""
    home = tmp_path / "home"
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for name in ("AGENT_CONFIG", "AGENT_HOST", "HF_TOKEN", "HF_ENDPOINT", "ROUTER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IIR_HOME", str(home))
    monkeypatch.setenv("AGENT_PORT", "1")  # nobody listens there
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return home


@pytest.fixture
def run(home: Path) -> Run:
    def invoke(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        assert str(home) not in result.output
        assert "Traceback" not in result.output
        return result

    return invoke


@pytest.fixture
def agent(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInAgent]:
    stand_in = StandInAgent()
    monkeypatch.setenv("AGENT_PORT", str(stand_in.port))
    yield stand_in
    stand_in.close()


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "mine.gguf"
    path.write_bytes(GGUF)
    return path


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def hub(script: Script) -> Iterator[FakeHub]:
    server = FakeHub(script)
    yield server
    server.close()
