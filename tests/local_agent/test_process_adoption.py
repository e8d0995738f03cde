"""Real processes that outlive the agent which started them, and the next agent's launcher."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import msgspec
import psutil
import pytest

from local_agent.ports import ContainerSpec, Launch, Left, Wanted
from local_agent.process import LocalProcess, LocalProcessLauncher, tree
from local_agent.process.exits import Watch
from local_agent.process.records import Record, Records
from tests.local_agent.test_process import (
    PARENT,
    SLEEPER,
    STUBBORN,
    is_alive,
    killed_agent,
    launcher,
    run_dir,
    script,
    start,
    wrote,
)

__all__ = ["run_dir"]
TALKER = """
import signal, sys, time
def talk(*_):
    print('error: out of luck', flush=True)
    sys.exit(3)
signal.signal(signal.SIGUSR1, talk)
print('up', flush=True)
while True: time.sleep(0.01)
"""


def wanted(code: str, config_hash: str = "h") -> dict[str, Wanted]:
    return {"m0": Wanted(config_hash, lambda _port: script(code))}


async def adopted(later: LocalProcessLauncher, code: str) -> LocalProcess:
    assert await later.left_running(wanted(code)) == {"m0": Left(7, must_serve=True)}
    assert await later.reap_orphans(["m0"]) == []
    process = await later.launch("m0", script(code), config_hash="h", port=8)
    assert process.is_adopted
    return process


@pytest.fixture(params=["pinned", "polled"])
async def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Notice an end as Linux can, and as other systems have to."""
    if request.param == "polled":

        def refuse(_pid: int) -> int:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    elif sys.platform != "linux":
        pytest.skip("file descriptors of processes are Linux's")
    return str(request.param)


async def test_the_end_of_an_adopted_process_is_noticed(run_dir: Path, how: str) -> None:
    (record,) = killed_agent(run_dir, TALKER)
    process = await adopted(launcher(run_dir), TALKER)
    assert (process.pid, process.port) == (record.pid, 7)
    (ours,) = Records(run_dir).all()
    assert (ours.owner_pid, ours.marker, ours.pid) == (os.getpid(), record.marker, record.pid)
    async with anyio.create_task_group() as group:
        ends: list[int] = []
        causes = [process.exit_cause]

        async def wait() -> None:
            ends.append(await process.wait())

        group.start_soon(wait)
        group.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        assert ends == []
        with anyio.fail_after(1):
            os.kill(process.pid, signal.SIGUSR1)
            while len(ends) < 2:
                await anyio.sleep(0.01)
    assert ends == [-1, -1]
    causes.append(process.exit_cause)
    unknown = "its exit code is unknown: an earlier agent had started it"
    assert causes == [None, f"the engine ended ({unknown}): error: out of luck"]
    await process.stop(1)
    assert Records(run_dir).all() == []


async def test_an_adopted_group_is_ended_whole_even_if_it_resists(run_dir: Path, how: str) -> None:
    killed_agent(run_dir, PARENT.format(child=STUBBORN))
    process = await adopted(launcher(run_dir), PARENT.format(child=STUBBORN))
    group = tree.members(process.pid)
    assert len(group) == 2
    assert await process.stop(0.05) is None
    assert not [one for one in group if is_alive(one.pid)]
    assert Records(run_dir).all() == []
    await process.stop(0.05)


async def test_what_an_adopted_leader_leaves_is_ended(run_dir: Path) -> None:
    killed_agent(run_dir, PARENT.format(child=SLEEPER))
    process = await adopted(launcher(run_dir), PARENT.format(child=SLEEPER))
    (child,) = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -1
    assert is_alive(child.pid)
    await process.stop(2)
    assert not is_alive(child.pid)


async def test_a_group_that_took_the_id_of_an_adopted_one_is_left_alone(run_dir: Path) -> None:
    killed_agent(run_dir, SLEEPER)
    process = await adopted(launcher(run_dir, kill_wait_s=0.05), SLEEPER)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    other = await start(run_dir, SLEEPER, name="another")
    try:
        process._pid = other.pid  # ids can't be made to come again here
        left = await process.stop(0.05)
        assert left is not None
        assert left.startswith("leaked")
        assert is_alive(other.pid)
    finally:
        await other.stop(1)


@pytest.mark.parametrize(
    ("now", "config_hash"),
    [(SLEEPER, "h2"), (f"{SLEEPER} # newer", "h"), ("", "h")],
    ids=["options", "program", "removed"],
)
async def test_what_is_not_wanted_like_this_any_more_is_ended(
    run_dir: Path, now: str, config_hash: str
) -> None:
    (record,) = killed_agent(run_dir, SLEEPER)
    assert record.pid is not None
    later = launcher(run_dir)
    assert await later.left_running(wanted(now, config_hash) if now else {}) == {}
    assert await later.reap_orphans() == ["m0"]
    assert not is_alive(record.pid)


async def test_a_model_that_runs_in_a_container_now_has_no_use_for_its_process(
    run_dir: Path,
) -> None:
    killed_agent(run_dir, SLEEPER)
    launch = Launch(argv=(), container=ContainerSpec(image="i", port=1))
    later = launcher(run_dir)
    assert await later.left_running({"m0": Wanted("h", lambda _port: launch)}) == {}
    assert await later.left_running({"m0": Wanted("h", lambda _port: None)}) == {}
    assert await later.reap_orphans() == ["m0"]


async def test_one_that_was_taken_over_and_can_t_be_ended_is_recorded_as_this_agent_s(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_agent(run_dir, SLEEPER)
    process = await adopted(launcher(run_dir, kill_wait_s=0.01), SLEEPER)
    with monkeypatch.context() as deaf:
        deaf.setattr(os, "killpg", lambda *_: None)
        await process.stop(0.01)
    (record,) = Records(run_dir).all()
    assert (record.name.partition(" ")[0], record.owner_pid) == ("m0", os.getpid())
    os.kill(process.pid, signal.SIGKILL)
    await process.stop(5)


async def test_what_was_found_and_is_not_kept_is_ended(run_dir: Path) -> None:
    (record,) = killed_agent(run_dir, SLEEPER)
    assert record.pid is not None
    later = launcher(run_dir)
    assert list(await later.left_running(wanted(SLEEPER))) == ["m0"]
    assert await later.reap_orphans(["other"]) == ["m0"]
    assert not is_alive(record.pid)
    process = await later.launch("m0", script(SLEEPER), config_hash="h", port=8)
    assert not process.is_adopted
    await process.stop(1)


async def test_one_that_ends_just_before_it_is_taken_over_is_started(run_dir: Path) -> None:
    code = PARENT.format(child=SLEEPER)
    (record,) = killed_agent(run_dir, code)
    assert record.pid is not None
    (child,) = psutil.Process(record.pid).children()
    later = launcher(run_dir)
    await later.left_running(wanted(code))
    await later.reap_orphans(["m0"])
    os.kill(record.pid, signal.SIGKILL)
    with anyio.fail_after(5):
        while is_alive(record.pid):
            await anyio.sleep(0.01)
    process = await later.launch("m0", script(code), config_hash="h", port=8)
    assert (process.is_adopted, process.port) == (False, 8)
    assert not is_alive(child.pid), "nobody would know of it any more"
    await process.stop(1)


async def test_one_whose_configuration_changes_just_before_is_replaced(run_dir: Path) -> None:
    (record,) = killed_agent(run_dir, SLEEPER)
    assert record.pid is not None
    later = launcher(run_dir)
    await later.left_running(wanted(SLEEPER))
    await later.reap_orphans(["m0"])
    process = await later.launch("m0", script(SLEEPER), config_hash="h2", port=8)
    assert not process.is_adopted
    assert not is_alive(record.pid)
    await process.stop(1)


async def test_one_that_can_t_be_recorded_as_ours_is_ended(run_dir: Path) -> None:
    (record,) = killed_agent(run_dir, SLEEPER)
    assert record.pid is not None
    later = launcher(run_dir)
    await later.left_running(wanted(SLEEPER))
    await later.reap_orphans(["m0"])
    (run_dir / "worker-m0.tmp").mkdir()  # as a full disk would do
    with pytest.raises(OSError, match="Is a directory"):
        await later.launch("m0", script(SLEEPER), config_hash="h", port=8)
    assert not is_alive(record.pid)


@pytest.fixture
async def bystander() -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SLEEPER), start_new_session=True, stdout=subprocess.DEVNULL
    )
    yield process.pid
    process.kill()
    await process.wait()


@pytest.mark.parametrize("knows_birth", [True, False])
async def test_another_process_with_the_id_is_neither_taken_nor_touched(
    run_dir: Path, bystander: int, knows_birth: bool
) -> None:
    (record,) = killed_agent(run_dir, SLEEPER)
    assert record.pid is not None
    os.kill(record.pid, signal.SIGKILL)
    reused = msgspec.structs.replace(record, pid=bystander)
    if not knows_birth:  # the worst case: even its start can't be told from ours
        reused = msgspec.structs.replace(reused, birth=tree.birth(bystander))
    Records(run_dir).write(reused)
    later = launcher(run_dir)
    assert await later.left_running(wanted(SLEEPER)) == {}
    if knows_birth:
        assert await later.reap_orphans() == []
        assert Records(run_dir).all() == []
    assert is_alive(bystander)
    Records(run_dir).remove("m0")


async def test_workers_of_an_agent_that_lives_are_not_taken(run_dir: Path) -> None:
    process = await start(run_dir, SLEEPER, name="m0")
    (record,) = Records(run_dir).all()
    assert await launcher(run_dir).left_running(wanted(SLEEPER)) == {}
    # not even if somebody has set the clock meanwhile
    Records(run_dir).write(msgspec.structs.replace(record, owner_create_time=1.0))
    assert await launcher(run_dir).left_running(wanted(SLEEPER)) == {}
    assert await launcher(run_dir).reap_orphans() == []
    assert is_alive(process.pid)
    await process.stop(1)


async def test_a_later_agent_is_told_what_is_written_from_then_on(run_dir: Path) -> None:
    killed_agent(run_dir, TALKER)
    process = await adopted(launcher(run_dir), TALKER)
    assert process.log_tail(10) == []
    os.kill(process.pid, signal.SIGUSR1)
    assert await wrote(process, "luck") == "error: out of luck"
    assert process.log_tail(10) == ["error: out of luck"]
    await process.stop(1)


def test_a_process_is_known_by_its_start() -> None:
    own = tree.birth(os.getpid())
    assert own == tree.birth(os.getpid())
    assert own != tree.birth(os.getppid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    assert ended.wait() == 0
    assert tree.birth(ended.pid) is None
    assert tree.marker(ended.pid) == ""
    with pytest.raises(psutil.NoSuchProcess):
        Watch(ended.pid)


def reader() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


async def test_a_zombie_is_gone() -> None:
    child = reader()
    watches = [Watch(child.pid), Watch(child.pid, may_pin=False)]
    child.kill()
    with anyio.fail_after(5):  # nobody has asked for its exit code
        for watch in watches:
            await watch.ended()
    assert tree.birth(child.pid) is None
    child.communicate()


def test_a_record_of_an_older_agent_is_read(run_dir: Path) -> None:
    old = Record(
        name="m",
        marker="x",
        config_hash="h",
        port=7,
        owner_pid=1,
        owner_create_time=1.0,
        pid=os.getpid(),
        create_time=tree.create_time(os.getpid()),
    )
    assert tree.is_leader(old)
    assert not tree.is_leader(msgspec.structs.replace(old, create_time=5.0))
    assert not tree.is_leader(msgspec.structs.replace(old, pid=None))
