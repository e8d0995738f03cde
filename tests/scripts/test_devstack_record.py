from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scripts.devstack.record import Identity, Record, end, wait_gone


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_record_survives_the_file(tmp_path: Path) -> None:
    me = Identity.of()
    record = Record(me, "http://127.0.0.1:8000", has_model=True, children={"router": me})
    record.write(tmp_path / "dev.json")
    assert Record.read(tmp_path / "dev.json") == record
    assert record.is_running()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"children": {}}', '{"children": 1}', "\x00"])
def test_a_broken_record_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "dev.json").write_text(text)
    assert Record.read(tmp_path / "dev.json") is None


def test_a_missing_record_is_none(tmp_path: Path) -> None:
    assert Record.read(tmp_path / "dev.json") is None


def test_a_pid_that_another_process_got_is_not_touched() -> None:
    foreign = sleeper()
    try:
        stale = Identity(foreign.pid, Identity.of(foreign.pid).create_time - 3600)
        record = Record(stale, "http://127.0.0.1:1", has_model=False, children={"agent": stale})
        assert not record.is_running()
        assert end(record, 0.1) is False
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


def test_children_of_a_killed_supervisor_are_ended() -> None:
    gone = sleeper()
    leader = Identity.of(gone.pid)
    gone.kill()
    gone.wait()
    program = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],\n"
        "                          start_new_session=True)\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        worker = psutil.Process(int(agent.stdout.readline()))
        record = Record(
            leader, "http://127.0.0.1:1", has_model=True, children={"agent": Identity.of(agent.pid)}
        )
        assert end(record, 0.3) is True
        assert agent.poll() is not None
    assert wait_gone([worker], 0.1) == []


def test_identity_of_a_dead_process_is_an_error() -> None:
    gone = sleeper()
    gone.kill()
    gone.wait()
    with pytest.raises(psutil.NoSuchProcess):
        Identity.of(gone.pid)
    assert Identity.of().pid == os.getpid()
