"""An agent that is killed, and the one that starts after it: both as processes, as users run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from local_agent.process import tree
from local_agent.process.records import Record, Records
from shared.kit.clock import monotonic
from tests.local_agent.test_agent_serve import SIMULATED, environment, process, write

SERVE = ["-m", "local_agent", "serve"]
SLOW = {**SIMULATED, "options": {"itl_ms": 20, "tokens": 400}}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Whatever a failed test leaves is ended afterwards."""
    yield tmp_path
    left = tree.left_behind(Records(tmp_path / "run" / "workers").all())
    tree.end([process for group in left.values() for process in group], 0.0)


def record(home: Path) -> Record:
    (found,) = Records(home / "run" / "workers").all()
    return found


def row(home: Path, env: dict[str, str]) -> dict[str, Any]:
    found = subprocess.run(
        [sys.executable, "-m", "local_agent", "ps", "--json"],
        env=env, cwd=home, capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    (only,) = json.loads(found.stdout)
    return dict(only)


def killed(home: Path, env: dict[str, str]) -> int:
    """Run an agent and kill it with -9; return its worker's process id."""
    with process(SERVE, env, home) as (agent, _):
        pid = record(home).pid
        assert pid is not None
        agent.kill()
        agent.wait()
    assert tree.create_time(pid) is not None
    return pid


@pytest.mark.slow
def test_a_worker_outlives_its_agent_and_serves_the_next_one(home: Path) -> None:
    write(home, SLOW)
    env = environment(home)
    with process(SERVE, env, home) as (agent, url):
        worker = record(home)
        body = {"prompt": "a", "model": "sim", "stream": True}
        with httpx.stream("POST", f"{url}/infer", json=body, timeout=20) as through:
            parts = through.iter_bytes()
            assert next(parts)
            agent.kill()  # in the middle of a stream
            with pytest.raises(httpx.HTTPError):
                list(parts)
        agent.wait()
    direct = f"http://127.0.0.1:{worker.port}/v1/completions"
    asked = {"prompt": "a", "model": "sim", "stream": True, "max_tokens": 400}
    with httpx.stream("POST", direct, json=asked, timeout=20) as own:
        pieces = own.iter_bytes()
        assert next(pieces)
        with process(SERVE, env, home) as (agent, url):
            assert record(home).pid == worker.pid
            assert record(home).owner_pid == agent.pid
            seen = row(home, env)
            assert (seen["pid"], seen["state"], seen["memory_mb"]) == (worker.pid, "ready", 96)
            starting, ready = events(url)
            assert (starting["to"], ready["to"]) == ("starting", "ready")
            assert ready["reason"] == "adopted: an earlier agent had started it"
            infer = httpx.post(f"{url}/infer", json={"prompt": "a", "model": "sim"}, timeout=20)
            assert infer.status_code == 200
            # another client of the engine has noticed nothing of all that
            assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
            group = tree.members(worker.pid or 0)
            assert group
            agent.send_signal(signal.SIGTERM)
            output = agent.communicate(timeout=10)[1]
            assert agent.returncode == 0
            assert '"event":"process_adopted"' in output
            assert str(home) not in output
            assert "Traceback" not in output
    assert not any(map(is_alive, group))
    assert Records(home / "run" / "workers").all() == []


@pytest.mark.slow
def test_a_changed_option_ends_the_old_worker_and_loads_a_new_one(home: Path) -> None:
    write(home, SIMULATED)
    env = environment(home)
    old = killed(home, env)
    write(home, {**SIMULATED, "options": {"tokens": 7}})
    with process(SERVE, env, home) as (agent, _):
        assert record(home).pid != old
        assert tree.create_time(old) is None
        agent.send_signal(signal.SIGTERM)
        output = agent.communicate(timeout=10)[1]
    assert '"reason":"its configuration has changed"' in output


@pytest.mark.slow
def test_a_killed_adopted_worker_is_noticed_at_once_and_comes_back(home: Path) -> None:
    write(home, SIMULATED)
    env = environment(home)
    old = killed(home, env)
    with process(SERVE, env, home) as (_, url):
        assert record(home).pid == old
        os.kill(old, signal.SIGKILL)
        until_passed(url, ["starting", "ready", "stopping"], within_s=3)
        path = ["starting", "ready", "stopping", "backoff", "starting", "loading", "ready"]
        until_passed(url, path, within_s=20)  # there is a pause of 10 s ± 20 %
        assert record(home).pid != old
        infer = httpx.post(f"{url}/infer", json={"prompt": "a", "model": "sim"}, timeout=20)
        assert infer.status_code == 200


@pytest.mark.slow
def test_an_agent_that_is_killed_again_and_again_keeps_one_worker(home: Path) -> None:
    write(home, SIMULATED)
    env = environment(home)
    assert len({killed(home, env) for _ in range(3)}) == 1


def events(url: str) -> list[dict[str, Any]]:
    text = httpx.get(f"{url}/internal/events?follow=false", trust_env=False).text
    return [json.loads(line[6:]) for line in text.splitlines() if line[:5] == "data:"]


def until_passed(url: str, states: list[str], within_s: float) -> None:
    """Wait until the worker has gone through these states first."""
    deadline = monotonic() + within_s
    while (passed := [event["to"] for event in events(url)])[: len(states)] != states:
        assert monotonic() < deadline, passed
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    return tree.create_time(process.pid) is not None
