from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from scripts.devstack.children import Child, open_log, stop
from scripts.devstack.errors import ServiceEnded
from scripts.devstack.record import Identity, wait_gone

STUBBORN = (
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "grandchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],\n"
    "                              start_new_session=True)\n"
    "print(grandchild.pid, flush=True)\n"
    "time.sleep(60)\n"
)


def make_child(log: Path, program: str) -> Child:
    return Child(
        "agent", [sys.executable, "-c", program], dict(os.environ), log, first_pause_s=0.01
    )


async def until(condition: object, limit_s: float = 10) -> None:
    assert callable(condition)
    give_up = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        await asyncio.sleep(0.01)


async def test_a_killed_child_starts_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Identity | None] = []
    child = make_child(tmp_path / "agent.log", "import time; time.sleep(60)")
    keeper = asyncio.ensure_future(child.keep(lambda: seen.append(child.identity), lambda: True))
    await until(lambda: len(seen) == 1)
    assert seen[0] is not None
    os.kill(seen[0].pid, signal.SIGKILL)
    await until(lambda: len(seen) == 2)
    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    await stop([child], asyncio.Event())
    assert seen[1] is not None
    assert seen[1].pid != seen[0].pid
    assert seen[1].process() is None
    assert "the agent ended (SIGKILL); it starts again" in capsys.readouterr().out


async def test_a_child_that_gives_up_during_the_start_ends_it_with_its_last_words(
    tmp_path: Path,
) -> None:
    child = make_child(tmp_path / "agent.log", "print('no key: refused'); raise SystemExit(3)")
    with pytest.raises(ServiceEnded, match=r"(?s)exit code 3.*no key: refused"):
        await child.keep(lambda: None, lambda: False)


async def test_stop_leaves_nothing_even_of_a_child_that_does_not_listen(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    child = make_child(log, STUBBORN)
    keeper = asyncio.ensure_future(child.keep(lambda: None, lambda: True))
    await until(lambda: log.exists() and log.read_text().endswith("\n"))
    grandchild = psutil.Process(int(log.read_text()))
    keeper.cancel()
    started = time.monotonic()
    await stop([child], asyncio.Event(), grace_s=0.1)
    assert time.monotonic() - started < 3
    assert wait_gone([grandchild], 3) == []
    assert child.identity is not None
    assert child.identity.process() is None


async def test_hurry_ends_the_grace(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    child = make_child(log, STUBBORN)
    keeper = asyncio.ensure_future(child.keep(lambda: None, lambda: True))
    await until(lambda: log.exists() and log.read_text().endswith("\n"))
    keeper.cancel()
    hurry = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, hurry.set)
    started = time.monotonic()
    await stop([child], hurry, grace_s=30)
    assert time.monotonic() - started < 3


def test_a_big_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.devstack.children.LOG_LIMIT", 10)
    log = tmp_path / "router.log"
    log.write_text("a long log of old")
    with open_log(log) as opened:
        opened.write(b"new")
    assert log.read_text() == "new"
    assert (tmp_path / "router.log.1").read_text() == "a long log of old"
