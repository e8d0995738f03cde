"""Router and agent as their commands start them, with the embedded model pulled once."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import httpx
import psutil
import pytest

from local_agent.process import free_port
from shared.kit.clock import monotonic

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m"
QUESTION = "What is the capital of France? Answer in one sentence."
ANSWER = "The capital of France is Paris."
MESSAGES: Any = [{"role": "user", "content": QUESTION}]


def missing(what: str) -> NoReturn:
    """Skip the test because of what this machine lacks; in CI that is a failure."""
    if os.environ.get("CI"):  # noqa: TID251 - a question about the machine
        pytest.fail(f"CI needs {what}")
    pytest.skip(f"needs {what}")


def machine_environment(**values: str) -> dict[str, str]:
    """Return this machine's environment, for tools that need their own settings (pip, npm)."""
    return {**os.environ, **values}  # noqa: TID251 - likewise


def output_of(
    words: Sequence[str],
    *,
    limit_s: float,
    folder: Path = ROOT,
    env: Mapping[str, str] | None = None,
    says: str = "",
) -> str:
    """Run one of this machine's tools to its good end, and return what it printed; `says` is its input."""
    done = subprocess.run(
        words,
        cwd=folder,
        env=machine_environment(**(env or {})),
        input=says,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{said}"
    return done.stdout


def until(
    is_true: Callable[[], object], limit_s: float, what: str, *, every_s: float = 0.05
) -> float:
    """Wait until something is so and return how long it took, in seconds."""
    started = monotonic()
    while not is_true():
        assert monotonic() - started < limit_s, f"{what}: not within {limit_s} s"
        time.sleep(every_s)
    return monotonic() - started


def pull_model(cache: Path) -> Path:
    """Return a folder with the embedded model's weights, pulled unless they are there."""
    if importlib.util.find_spec("xllamacpp") is None:
        missing("xllamacpp: pip install '.[llama]'")
    home = cache / "home"
    pull = subprocess.run(
        [sys.executable, "-m", "local_agent", "pull", MODEL],
        cwd=cache,
        env=machine_environment(IIR_HOME=str(home), PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if pull.returncode != 0:
        missing(f"the embedded model's weights: {pull.stderr[-500:]}")
    return home / "models"


def processes_of(home: Path) -> list[psutil.Process]:
    """Return what lives of the services with this `IIR_HOME` and of their workers."""
    return [process for process in psutil.process_iter() if _is_of(home, process)]


def _is_of(home: Path, process: psutil.Process) -> bool:
    try:
        is_service = process.environ().get("IIR_HOME") == str(home)
        is_worker = any(str(home) in argument for argument in process.cmdline())
        return (is_service or is_worker) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Service:
    """One of the two services as a process; its output goes to a file."""

    def __init__(self, package: str, url: str, env: dict[str, str], folder: Path) -> None:
        self.package = package
        self.url = url
        self.output = folder / f"{package}.out"
        self._env = env
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.package, "serve"],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        until(self._answers, 30, f"{self.package} answers")

    def kill(self) -> None:
        """End it as `kill -9` does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> float:
        """End it as SIGTERM does; return the seconds that it took."""
        assert self.process is not None
        started = monotonic()
        self.process.terminate()
        assert self.process.wait(timeout=20) == 0
        return monotonic() - started

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.output.read_text()[-3000:]
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=2).status_code == 200
        except httpx.HTTPError:
            return False


class Stack:
    """A router and an agent with one `IIR_HOME`, on free ports."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.home = folder / "home"
        (self.home / "agent").mkdir(parents=True)
        (self.home / "models").symlink_to(models)
        ports = {"ROUTER_PORT": free_port(), "AGENT_PORT": free_port()}
        self.env = {
            "PATH": os.defpath,
            "PYTHONPATH": str(ROOT),
            "IIR_HOME": str(self.home),
            "ROUTER_URL": f"http://127.0.0.1:{ports['ROUTER_PORT']}",
            **{name: str(port) for name, port in ports.items()},
        }
        self.router = Service("router", self.env["ROUTER_URL"], self.env, folder)
        agent_url = f"http://127.0.0.1:{ports['AGENT_PORT']}"
        self.agent = Service("local_agent", agent_url, self.env, folder)
        self.credential_path = self.home / "agent" / "credential"
        self.run("router", "agents", "add", "mac", "--token-file", str(self.credential_path))

    @property
    def base_url(self) -> str:
        """Return what an OpenAI client is given."""
        return f"{self.router.url}/v1"

    def run(self, package: str, *arguments: str) -> str:
        """Run one of the command lines and return its output."""
        done = subprocess.run(
            [sys.executable, "-m", package, *arguments],
            cwd=self.home.parent,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        """Start both and wait until the embedded model answers through the router."""
        self.router.start()
        self.agent.start()
        self.until_served(60)

    def ask(self, **more: object) -> httpx.Response:
        """Ask the capital of France."""
        body = {"model": "default", "messages": MESSAGES, "temperature": 0, **more}
        return httpx.post(
            f"{self.base_url}/chat/completions", json=body, trust_env=False, timeout=60
        )

    def is_served(self) -> bool:
        """Tell whether the question is answered, and that nothing but the allowed is said else."""
        try:
            answer = self.ask()
        except httpx.HTTPError:
            return False  # the router is away
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["message"]["content"] == ANSWER
            return True
        assert answer.status_code in {404, 502, 503}, answer.text
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
        return False

    def until_served(self, limit_s: float) -> float:
        """Wait until the question is answered, and return how long it took."""
        return until(self.is_served, limit_s, "the model answers")

    def worker(self) -> psutil.Process:
        """Return the embedded model's worker."""
        rows = httpx.get(f"{self.agent.url}/internal/workers", trust_env=False).json()
        return psutil.Process(next(row["pid"] for row in rows if row["model"] == MODEL))

    def processes(self) -> list[psutil.Process]:
        """Return what lives of this stack, whoever started it."""
        return processes_of(self.home)

    def texts(self) -> dict[str, str]:
        """Return all that both and their workers have written."""
        files = [self.router.output, self.agent.output, *(self.home / "logs").rglob("*")]
        return {path.name: path.read_text() for path in files if path.is_file()}

    def close(self) -> None:
        """End whatever lives."""
        for process in self.processes():
            process.kill()
        for service in (self.router, self.agent):
            if service.process is not None:
                service.process.wait()


def command(name: str) -> str:
    """Return the path of a program that this machine has to have."""
    found = shutil.which(name)
    return found or missing(name)
