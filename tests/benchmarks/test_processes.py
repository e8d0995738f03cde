"""What a process tree costs: children count, those that have ended as well."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.machine import describe_machine, find_pinning
from benchmarks.processes import (
    BenchError,
    Program,
    await_answer,
    cpu_seconds,
    free_port,
    plain_environment,
    rss_mb,
    tree,
)

_BURN = "import time\nwhile time.process_time() < 0.2: pass\n"
_PARENT = f"""
import subprocess, sys
burn = {_BURN!r}
subprocess.run([sys.executable, "-c", burn])  # ends, and is reaped
child = subprocess.Popen([sys.executable, "-c", burn + "print('ready', flush=True); input()"],
                         stdin=subprocess.PIPE)
{_BURN}
input()
child.communicate(b"\\n")
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """A process that burnt 0.2 s, as did a child that is there and one that has ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    yield process
    process.communicate("\n", timeout=30)


def test_the_whole_tree_counts(family: subprocess.Popen[str]) -> None:
    assert tree(family.pid)[0].pid == family.pid
    assert len(tree(family.pid)) == 2
    own = psutil.Process(family.pid).memory_info().rss / 1e6
    assert rss_mb(family.pid) > own


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not report reaped children")
def test_a_child_that_has_ended_still_counts(family: subprocess.Popen[str]) -> None:
    spent = cpu_seconds(family.pid)
    assert spent >= 0.38  # two children with 0.2 s each, less the clock's granularity
    assert cpu_seconds(family.pid) >= spent


def test_a_process_that_is_gone_costs_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert tree(process.pid) == []
    assert cpu_seconds(process.pid) == 0


def test_a_program_that_ends_is_reported_with_its_output(tmp_path: Path) -> None:
    program = Program(
        [sys.executable, "-c", "raise SystemExit('no such option')"],
        env=plain_environment({}),
        folder=tmp_path,
        log=tmp_path / "log",
    )
    with pytest.raises(BenchError, match="exit code 1:\nno such option"):
        await_answer(program, free_port(), "/", b"{}", key="", within_s=30)
    program.stop()


def test_children_write_bytecode_and_see_no_setting_of_the_developer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("ROUTER_POLICY", "priority")
    env = plain_environment({"IIR_HOME": "x"})
    assert not {"PYTHONDONTWRITEBYTECODE", "ROUTER_POLICY"} & set(env)
    assert env["IIR_HOME"] == "x"


def test_pinning_takes_two_cores_or_says_why_not() -> None:
    pinning = find_pinning()
    if pinning.gateway:
        assert pinning.gateway[:2] == pinning.load[:2]
        assert pinning.gateway != pinning.load
    else:
        assert "not pinned" in pinning.text


def test_the_machine_is_described_without_its_name() -> None:
    text = describe_machine()
    assert f"{os.cpu_count()} cores" in text
    assert os.uname().nodename not in text.split()
