"""Real processes: short scripts that stand for engines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from local_agent.ports import Launch
from local_agent.process import LocalProcess, LocalProcessLauncher, free_port, tree
from local_agent.process.environment import MARKER
from local_agent.process.records import Record, Records
from tests.local_agent.harness import until

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    " print('up', flush=True); time.sleep(600)"
)
# a leader with a child in its group, like vLLM and its EngineCore
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', {child!r}])
print('child', child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """Whatever a failed test leaves is ended afterwards."""
    path = tmp_path / "run"
    yield path
    left = tree.left_behind(Records(path).all())
    tree.end([process for group in left.values() for process in group], 0.0)


def launcher(run_dir: Path, **more: float) -> LocalProcessLauncher:
    return LocalProcessLauncher(
        run_dir=run_dir,
        log_dir=run_dir.parent / "logs",
        env={"PATH": os.defpath, "SECRET_KEY": "s3cret"},
        max_log_bytes=int(more.get("max_log_bytes", 10_000)),
        log_check_s=more.get("log_check_s", 0.01),
        kill_wait_s=more.get("kill_wait_s", 10.0),
        reap_grace_s=more.get("reap_grace_s", 2.0),
    )


def script(code: str) -> Launch:
    return Launch(argv=(sys.executable, "-c", code))


async def start(run_dir: Path, code: str, name: str = "org/m", **more: float) -> LocalProcess:
    return await launcher(run_dir, **more).launch(name, script(code), config_hash="h", port=7)


async def wrote(process: LocalProcess, word: str) -> str:
    with anyio.fail_after(20):
        while True:
            found = [line for line in process.log_tail(50) if word in line]
            if found:
                return found[0]
            await anyio.sleep(0.01)


async def child_of(process: LocalProcess) -> int:
    return int((await wrote(process, "child")).split()[1])


def recorded(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in run_dir.iterdir()]


def is_alive(pid: int) -> bool:
    return tree.create_time(pid) is not None


async def test_it_starts_in_a_group_of_its_own_and_is_recorded(run_dir: Path) -> None:
    process = await start(run_dir, SLEEPER)
    await wrote(process, "up")
    (record,) = recorded(run_dir)
    assert (record["name"], record["pid"], record["port"]) == ("org/m", process.pid, 7)
    assert record["config_hash"] == "h"
    assert os.getpgid(process.pid) == os.getsid(process.pid) == process.pid
    assert tree.is_same(process.pid, record["create_time"])
    await process.stop(5)
    assert not is_alive(process.pid)
    assert recorded(run_dir) == []
    assert await process.wait() == -signal.SIGTERM


async def test_the_child_sees_no_secret_and_no_open_stdin(run_dir: Path) -> None:
    code = "import os, sys; print(sorted(os.environ)); print('in', repr(sys.stdin.read()))"
    process = await start(run_dir, code)
    assert await process.wait() == 0
    said = "\n".join(process.log_tail(5))
    assert MARKER in said
    assert "SECRET_KEY" not in said
    assert "in ''" in said
    await process.stop(1)


async def test_several_may_wait_for_the_exit(run_dir: Path) -> None:
    process = await start(run_dir, "raise SystemExit(3)")
    first, second = await asyncio.gather(process.wait(), process.wait())
    assert (first, second) == (3, 3)
    await process.stop(1)
    await process.stop(1)


async def test_kill_follows_after_the_grace(run_dir: Path) -> None:
    process = await start(run_dir, STUBBORN)
    await wrote(process, "up")
    await process.stop(0.05)
    assert await process.wait() == -signal.SIGKILL
    assert not is_alive(process.pid)


async def test_stop_ends_the_whole_group_even_if_it_resists(run_dir: Path) -> None:
    process = await start(run_dir, PARENT.format(child=STUBBORN))
    child = await child_of(process)
    await process.stop(0.05)
    assert not is_alive(process.pid)
    assert not is_alive(child)


async def test_what_a_killed_leader_leaves_is_stopped_too(run_dir: Path) -> None:
    process = await start(run_dir, PARENT.format(child=SLEEPER))
    child = await child_of(process)
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    assert is_alive(child)
    await process.stop(2)
    assert not is_alive(child)


async def test_a_program_that_is_not_there_leaves_no_record(run_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await launcher(run_dir).launch(
            "m", Launch(argv=("/nowhere/engine",)), config_hash="h", port=7
        )
    assert recorded(run_dir) == []


async def test_the_log_is_bounded_while_the_engine_writes(run_dir: Path) -> None:
    code = "import time\nfor n in range(400): print('x' * 100, flush=True); time.sleep(0.0005)"
    process = await start(run_dir, code, max_log_bytes=5000, log_check_s=0.001)
    assert await process.wait() == 0
    sizes = {path.name: path.stat().st_size for path in (run_dir.parent / "logs").iterdir()}
    assert len(sizes) == 2
    assert sum(sizes.values()) < 40_000
    assert process.log_tail(1) == ["x" * 100]
    await process.stop(1)


async def test_what_outlives_even_sigkill_is_left_to_the_next_agent(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await start(run_dir, STUBBORN, kill_wait_s=0.01)
    await wrote(process, "up")
    with monkeypatch.context() as deaf:
        # a process that hangs in the kernel can't be had here: nobody hears the signals instead
        deaf.setattr(os, "killpg", lambda *_: None)
        await process.stop(0.01)
    (record,) = recorded(run_dir)
    assert record["name"].startswith("org/m (leaked "), "the next worker has a record of its own"
    assert not await process.is_gone(), "it keeps its memory"
    os.kill(process.pid, signal.SIGKILL)
    await process.stop(5)
    assert await process.is_gone()
    assert recorded(run_dir) == []


async def test_orphans_that_can_not_be_ended_stay_recorded(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_agent(run_dir, SLEEPER)
    with monkeypatch.context() as deaf:
        deaf.setattr(psutil.Process, "send_signal", lambda *_: None)
        for _ in range(2):  # agents that start one after the other
            agent = launcher(run_dir, reap_grace_s=0.01)
            assert await agent.reap_orphans() == ["m0"]
            ((name, left),) = (await agent.unended()).items()
            assert name.startswith("m0 (leaked ")
            assert (left.model, left.config_hash) == ("m0", "h")
            assert left.memory_mb > 0
    assert len(recorded(run_dir)) == 1
    last = launcher(run_dir)
    assert await last.reap_orphans() == ["m0"]
    assert await last.unended() == {}
    assert recorded(run_dir) == []


async def test_what_is_left_is_forgotten_once_it_is_gone(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (record,) = killed_agent(run_dir, SLEEPER)
    agent = launcher(run_dir, reap_grace_s=0.01)
    with monkeypatch.context() as deaf:
        deaf.setattr(psutil.Process, "send_signal", lambda *_: None)
        await agent.reap_orphans()
    process = await agent.launch("m0", script(SLEEPER), config_hash="h", port=7)
    assert len(await agent.unended()) == 1
    assert len(recorded(run_dir)) == 2
    assert record.pid is not None
    os.kill(record.pid, signal.SIGKILL)
    await until(lambda: not is_alive(record.pid or 0))
    assert await agent.unended() == {}
    assert [found["name"] for found in recorded(run_dir)] == ["m0"]
    await process.stop(1)


def test_questions_about_processes_that_are_gone_or_foreign() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    known = psutil.Process(gone.pid)
    gone.wait()
    assert tree.create_time(gone.pid) is None
    assert tree.group_is_gone(gone.pid)
    assert tree.members(gone.pid) == []
    assert tree.end([known], 0.01)


def test_free_port_can_be_bound() -> None:
    assert 0 < free_port() < 65_536


AGENT = """
import asyncio, os, signal, sys
from pathlib import Path
from local_agent.ports import Launch
from local_agent.process import LocalProcessLauncher
async def main():
    run_dir, *codes = sys.argv[1:]
    launcher = LocalProcessLauncher(
        run_dir=Path(run_dir), log_dir=Path(run_dir).parent / "logs", env=dict(os.environ)
    )
    for number, code in enumerate(codes):
        launch = Launch(argv=(sys.executable, "-c", code))
        process = await launcher.launch(f"m{number}", launch, config_hash="h", port=7)
        while not process.log_tail(1):
            await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def killed_agent(run_dir: Path, *codes: str) -> list[Record]:
    """Run an agent that starts these workers and is killed with -9; return its records."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AGENT), str(run_dir), *codes],
        cwd=root,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    return Records(run_dir).all()


async def test_a_killed_agent_leaves_no_orphan_after_the_next_start(run_dir: Path) -> None:
    records = killed_agent(run_dir, SLEEPER, STUBBORN, PARENT.format(child=SLEEPER))
    left = [process for group in tree.left_behind(records).values() for process in group]
    assert len(left) == 4
    assert await launcher(run_dir, reap_grace_s=0.2).reap_orphans() == ["m0", "m1", "m2"]
    assert not [process for process in left if is_alive(process.pid)]
    assert Records(run_dir).all() == []
    assert await launcher(run_dir).reap_orphans() == []


async def test_members_of_the_group_are_found_when_the_leader_is_gone(run_dir: Path) -> None:
    (record,) = killed_agent(run_dir, PARENT.format(child=SLEEPER))
    assert record.pid is not None
    children = psutil.Process(record.pid).children()
    os.kill(record.pid, signal.SIGKILL)
    assert await launcher(run_dir).reap_orphans() == ["m0"]
    assert not [child for child in children if is_alive(child.pid)]


async def test_a_child_started_just_before_the_kill_is_found_by_its_marker(run_dir: Path) -> None:
    (record,) = killed_agent(run_dir, SLEEPER)
    pid = record.pid
    assert pid is not None
    Records(run_dir).write(
        Record(
            name=record.name,
            marker=record.marker,
            config_hash="h",
            port=7,
            owner_pid=record.owner_pid,
            owner_create_time=record.owner_create_time,
        )
    )
    assert await launcher(run_dir).reap_orphans() == ["m0"]
    assert not is_alive(pid)


async def test_a_process_that_reused_the_id_is_left_alone(run_dir: Path) -> None:
    bystander = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SLEEPER, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        started = tree.create_time(bystander.pid)
        assert started is not None
        Records(run_dir).write(
            Record(
                name="m",
                marker="not-its-marker",
                config_hash="h",
                port=7,
                owner_pid=os.getpid(),
                owner_create_time=1.0,
                pid=bystander.pid,
                create_time=started - 3600,
            )
        )
        assert await launcher(run_dir).reap_orphans() == []
        assert is_alive(bystander.pid)
        assert Records(run_dir).all() == []
    finally:
        bystander.kill()
        await bystander.wait()


async def test_workers_of_a_living_agent_are_no_orphans(run_dir: Path) -> None:
    process = await start(run_dir, SLEEPER)
    assert await launcher(run_dir).reap_orphans() == []
    assert is_alive(process.pid)
    assert len(Records(run_dir).all()) == 1
    await process.stop(5)
