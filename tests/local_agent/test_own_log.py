"""The agent's own log, which launchd only appends to: bounded by the agent itself, while it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local_agent.service.own_log import trim
from tests.local_agent.harness import ROOT


@pytest.mark.parametrize("flags", [0, os.O_APPEND])
def test_an_agent_bounds_the_log_that_it_writes_to(tmp_path: Path, flags: int) -> None:
    log = tmp_path / "agent.log"
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | flags)
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(fd, b"first line\n" * 10)
        trim(log, 200, (fd, other))
        assert log.stat().st_size == 110
        trim(log, 100, (other,))
        assert log.stat().st_size == 110, "somebody else's"
        trim(log, 100, (fd, other))
        os.write(fd, b"next line\n")
        assert log.read_bytes() == b"next line\n"
        assert log.with_name("agent.log.1").read_bytes() == b"first line\n" * 10
    finally:
        os.close(fd)
        os.close(other)


def test_nothing_is_done_to_a_log_that_is_not_there(tmp_path: Path) -> None:
    trim(tmp_path / "agent.log", 0)
    assert list(tmp_path.iterdir()) == []


WRITES = """
import sys, time
from pathlib import Path
from local_agent.service.own_log import bounded
path = Path(sys.argv[1])
with bounded(path, most_bytes=1000, every_s=0.005):
    while not path.with_name("agent.log.1").exists():
        sys.stderr.write("a line of the log\\n")
        sys.stderr.flush()
        time.sleep(0.001)
"""


def test_a_log_does_not_grow_while_the_agent_runs(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    with log.open("ab") as stderr:
        subprocess.run(
            [sys.executable, "-c", WRITES, str(log)],
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
            stderr=stderr,
            check=True,
            timeout=30,
        )
    assert log.with_name("agent.log.1").stat().st_size > 1000
