"""`make dev` as a newcomer has it: the real model, everything killed in turn, nothing left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from local_agent.process import tree
from local_agent.process.records import Records
from scripts.devstack.record import Record, wait_gone

ROOT = Path(__file__).parents[2]
ANSWER = "The capital of France is Paris."
RECOVERY_S = 45.0  # a worker's first pause is 10 s; the machine may be busy
pytestmark = pytest.mark.integration


class Stack:
    """A supervising process with its own home and free ports."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.output = home / "output"
        started = time.monotonic()
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scripts.dev", "run"],
                cwd=ROOT,
                env={**os.environ, "IIR_HOME": str(home), "ROUTER_PORT": "0", "AGENT_PORT": "0"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while "\nstop: Ctrl-C" not in self.printed():
            assert self.process.poll() is None, self.printed()
            assert time.monotonic() - started < 120, self.printed()
            time.sleep(0.05)
        self.start_s = time.monotonic() - started

    def printed(self) -> str:
        return self.output.read_text()

    def record(self) -> Record:
        record = Record.read(self.home / "run" / "dev.json")
        assert record is not None
        return record

    def processes(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children(recursive=True)
        # a worker that the agent took over is not its child
        left = tree.left_behind(Records(self.home / "run" / "workers").all())
        return list({*found, *(process for group in left.values() for process in group)})

    def pid(self, name: str) -> int:
        """Return the process of `router`, `agent` or `worker`."""
        if name != "worker":
            return self.record().children[name].pid
        (worker,) = Records(self.home / "run" / "workers").all()
        assert worker.pid is not None
        return worker.pid

    def ask(self) -> str:
        """Run the curl line that was printed; return the answer or the error."""
        line = re.search(r"^curl .*$", self.printed(), re.MULTILINE)
        assert line is not None
        done = subprocess.run(
            line.group(), shell=True, capture_output=True, text=True, timeout=60, check=False
        )
        try:
            return str(json.loads(done.stdout)["choices"][0]["message"]["content"]).strip()
        except (ValueError, KeyError):
            return done.stdout or f"curl: exit code {done.returncode}"

    def stop(self) -> float:
        """Send SIGTERM; return the seconds until it was gone."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)
        return time.monotonic() - started


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("home"))
    yield running
    if running.process.poll() is None:
        running.stop()


def test_the_printed_line_is_answered_by_the_real_model(stack: Stack) -> None:
    assert stack.ask() == ANSWER


@pytest.mark.parametrize("name", ["worker", "router", "agent"])
def test_what_is_killed_comes_back(stack: Stack, name: str) -> None:
    os.kill(stack.pid(name), signal.SIGKILL)
    until = time.monotonic() + RECOVERY_S
    while (answer := stack.ask()) != ANSWER:
        assert time.monotonic() < until, answer
        time.sleep(0.2)


def test_a_second_one_is_refused_while_the_first_runs(stack: Stack) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "scripts.dev", "run"],
        cwd=ROOT,
        env={**os.environ, "IIR_HOME": str(stack.home), "ROUTER_PORT": "0", "AGENT_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert f"it runs already at {stack.record().router_url}/v1" in second.stdout


def test_nothing_is_left_and_a_second_start_is_quick(stack: Stack) -> None:
    family = stack.processes()
    assert len(family) >= 3
    assert stack.stop() < 5
    assert stack.process.returncode == 0
    assert wait_gone(family, 0.5) == []
    assert not (stack.home / "run" / "dev.json").exists()
    again = Stack(stack.home)
    family = again.processes()
    os.kill(again.pid("agent"), signal.SIGKILL)  # its worker has no parent now
    assert again.stop() < 5
    assert wait_gone(family, 0.5) == []
    assert again.start_s < 10
