"""The machine's own memory: what is read of it, when a load waits for it, and what ended workers keep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_agent.domain import ModelId, Unended, WorkerState
from local_agent.errors import ModelOnItsWay
from local_agent.host.facts import machine_name, processor_of
from local_agent.memory.ledger import Ledger
from local_agent.memory.leftovers import WiredReturn
from local_agent.memory.machine import MachineMemory, MachineRoom, of_linux, of_macos
from local_agent.memory.outlook import Verdict
from local_agent.memory.reading import MachineWatch, machine_memory
from local_agent.memory.remembered import Memo, Remembered
from tests.local_agent.harness import until
from tests.local_agent.macos_outputs import VM_STAT_M1
from tests.local_agent.residency import A, B, look, running, settled, sized, states, supervised

if TYPE_CHECKING:
    from tests.local_agent.conftest import Stage

S = WorkerState
M = ModelId("m")

# https://github.com/eminence/procfs/issues/40
PSI_STALLED = """\
some avg10=70.24 avg60=68.52 avg300=69.91 total=3559632828
full avg10=57.59 avg60=58.06 avg300=60.38 total=3300487258
"""
# https://github.com/flatcar-archive/coreos-overlay/pull/638
PSI_IDLE = """\
some avg10=0.00 avg60=0.00 avg300=0.00 total=0
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""
# In sysctl's form (`name: value`). That 49 % are free when the level turns to 2 is from
# https://github.com/exelban/stats/issues/318, the levels 1, 2 and 4 from
# https://github.com/giampaolo/psutil/issues/2725 and https://github.com/exelban/stats/issues/1010.
LEVELS = "kern.memorystatus_level: 49\nkern.memorystatus_vm_pressure_level: {level}\n"


def test_linux_is_critical_when_everything_stands_still() -> None:
    assert of_linux(900, PSI_STALLED).is_critical
    assert not of_linux(900, PSI_IDLE).is_critical
    assert not of_linux(900, "").is_critical, "a kernel without it"
    assert of_linux(900, PSI_IDLE).available_mb == 900


def test_a_mac_tells_what_is_free_wired_and_whether_it_is_short() -> None:
    calm = of_macos(16_384, VM_STAT_M1, LEVELS.format(level=1))
    assert calm is not None
    # (355378 + 166967 + 56413) pages of 16 KiB are idle; 143109 are wired
    assert (calm.available_mb, calm.idle_mb, calm.wired_mb) == (8028, 8028, 2236)
    assert not calm.is_critical
    warned = of_macos(16_384, VM_STAT_M1, LEVELS.format(level=2))
    assert warned is not None
    assert not warned.is_critical, "that comes with half of the memory free"
    short = of_macos(16_384, VM_STAT_M1, LEVELS.format(level=4))
    assert short is not None
    assert short.is_critical


def test_a_mac_that_tells_less_is_believed_less() -> None:
    assert of_macos(16_384, "", LEVELS.format(level=1)) is None
    found = of_macos(16_384, VM_STAT_M1, "")
    assert found is not None
    assert found.available_mb == found.idle_mb == 9043


def room(guard: str, reserve_mb: int = 0, **memory: int | bool) -> MachineRoom:
    found = MachineRoom(guard, reserve_mb)  # type: ignore[arg-type]
    found.memory = replace(MachineMemory(available_mb=1000, idle_mb=600), **memory)  # type: ignore[arg-type]
    return found


def test_what_the_machine_gives_depends_on_the_guard() -> None:
    assert room("normal").free_mb(0) == 1000
    assert room("normal", 500).free_mb(100) == 900
    assert room("strict", 500).free_mb(0) == 100
    assert room("strict", 500).free_mb(200) == 0
    assert room("normal", is_critical=True).free_mb(0) == 0
    assert room("normal", is_critical=True).free_mb(-70) == 70, "somebody has just given it back"
    assert room("off", is_critical=True).free_mb(0) is None
    assert MachineRoom().free_mb(0) is None, "it has not told yet"


def test_a_shortage_says_what_is_needed_what_there_is_and_what_to_do() -> None:
    assert room("normal").shortage(1000, 0) is None
    assert room("off").shortage(10_000, 0) is None
    said = room("normal").shortage(1001, 50)
    assert said is not None
    for word in ("1001 MiB", "1000 MiB available", "50 MiB of that", "memory_guard: normal"):
        assert word in said
    strict = room("strict", 500).shortage(101, 0)
    assert strict is not None
    assert "600 MiB unused, of which 500 MiB are left" in strict
    critical = room("normal", is_critical=True).shortage(1, 0)
    assert critical is not None
    assert "itself that it is short" in critical


def tell(available_mb: int, wired_mb: int | None = None) -> MachineMemory:
    return MachineMemory(available_mb=available_mb, idle_mb=available_mb, wired_mb=wired_mb)


async def test_a_load_waits_while_other_programs_have_the_memory_and_says_so(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, A, 60))
    await supervisor.told_memory(tell(59))
    async with running(supervisor):
        with pytest.raises(ModelOnItsWay) as refused:
            await supervisor.ensure_ready(A, 0.2)
        assert "needs 60 MiB, and the machine has 59 MiB available" in str(refused.value)
        assert states(supervisor)[A] is S.COLD
        (view,) = supervisor.workers()
        assert "the machine has 59 MiB" in (view.reason or "")
        assert supervisor.awaits_memory()
        outlook = supervisor.outlook(A)
        assert (outlook.verdict, outlook.would_go) == (Verdict.WAITS, ())
        assert "59 MiB" in (outlook.as_values()["cause"])
        await supervisor.told_memory(tell(60))
        await settled(supervisor, A, S.READY)
        assert not supervisor.awaits_memory()


async def test_with_the_guard_off_the_ledger_alone_decides(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, A, 60))
    supervisor.residency.room.machine.guard = "off"
    await supervisor.told_memory(tell(1))
    async with running(supervisor):
        await supervisor.ensure_ready(A, 30)
        assert states(supervisor) == {A: S.READY}
        assert not supervisor.awaits_memory()


async def test_idle_models_make_room_for_what_the_machine_lacks(stage: Stage) -> None:
    """The budget of 100 would hold both."""
    models = (sized(stage, A, 40), sized(stage, B, 40))
    supervisor = supervised(stage, *models)
    await supervisor.told_memory(tell(60))
    async with running(supervisor):
        await supervisor.ensure_ready(A, 30)
        await supervisor.told_memory(tell(20))
        supervisor.residency.ask(B)
        supervisor.set_desired(models)
        await settled(supervisor, B, S.READY)
        assert states(supervisor)[A] is S.COLD


async def test_what_a_model_gave_back_is_not_waited_for_twice(stage: Stage) -> None:
    """The machine is looked at now and then: until then nobody else has to go for the same memory."""
    c = ModelId("c")
    models = (sized(stage, A, 30), sized(stage, B, 30), sized(stage, c, 30))
    supervisor = supervised(stage, *models)
    async with running(supervisor):
        await supervisor.ensure_ready(A, 30)
        await supervisor.ensure_ready(B, 30)
        await supervisor.told_memory(tell(5))
        supervisor.residency.ask(c)
        supervisor.set_desired(models)
        await settled(supervisor, c, S.READY)
        assert sorted(states(supervisor).values()) == [S.COLD, S.READY, S.READY]


async def test_two_loads_at_once_do_not_both_count_on_the_same_memory(stage: Stage) -> None:
    models = (sized(stage, A, 40, preload=True), sized(stage, B, 40, preload=True))
    supervisor = supervised(stage, *models)
    stage.prober.is_up = False
    await supervisor.told_memory(tell(79))
    async with running(supervisor):
        await settled(supervisor, A, S.LOADING)
        assert states(supervisor)[B] is S.COLD
        assert supervisor.residency.ledger.held == {A: 40}


async def test_a_leaked_workers_memory_stays_reserved_while_it_lives(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, A, 60))
    ledger = supervisor.residency.ledger
    async with running(supervisor):
        await supervisor.ensure_ready(A, 30)
        (process,) = stage.launcher.processes
        process.left = "leaked: it can't be ended"
        supervisor.unload(A)
        await settled(supervisor, A, S.COLD)
        assert (dict(ledger.held), ledger.left_mb, ledger.free_mb) == ({}, 60, 40)
        await supervisor.told_memory(None)
        assert ledger.free_mb == 40
        with pytest.raises(ModelOnItsWay, match="workers that have ended still hold 60 of the 100"):
            await supervisor.ensure_ready(A, 0.1)
        process.left = None  # it has ended after all
        await supervisor.told_memory(None)
        assert ledger.left_mb == 0
        await settled(supervisor, A, S.READY)
        assert not supervisor.awaits_memory()


async def test_memory_that_an_earlier_agent_leaked_is_nobodys_until_its_process_is_gone(
    stage: Stage,
) -> None:
    supervisor = supervised(stage, sized(stage, A, 60))
    ledger = supervisor.residency.ledger
    supervisor.residency.remembered.saw(B, "h", 70)  # on a Mac its process shows less
    stage.launcher.leaked = {
        "b (leaked 1)": Unended(model=B, config_hash="h", memory_mb=5),
        "c (leaked 2)": Unended(model="c", config_hash="h", memory_mb=25),
    }
    async with running(supervisor):
        await until(lambda: ledger.left_mb == 95)
        with pytest.raises(ModelOnItsWay, match="workers that have ended still hold 95 of the 100"):
            await supervisor.ensure_ready(A, 0.1)
        assert supervisor.awaits_memory()
        await supervisor.told_memory(None)
        assert ledger.left_mb == 95
        del stage.launcher.leaked["b (leaked 1)"]
        await supervisor.told_memory(None)
        assert ledger.left_mb == 25
        await settled(supervisor, A, S.READY)
        stage.launcher.leaked.clear()
        await supervisor.told_memory(None)
        assert not supervisor.awaits_memory()


async def test_wired_memory_is_seen_back_before_it_is_given_again(stage: Stage) -> None:
    supervisor = supervised(stage, sized(stage, A, 600))
    ledger = supervisor.residency.ledger
    ledger.set_budget(1000)
    await supervisor.told_memory(tell(5000, wired_mb=2000))
    async with running(supervisor):
        stage.prober.is_up = False
        supervisor.residency.ask(A)
        supervisor.set_desired((sized(stage, A, 600),))
        await settled(supervisor, A, S.LOADING)
        await supervisor.told_memory(tell(4500, wired_mb=2500))
        stage.prober.is_up = True
        await settled(supervisor, A, S.READY)
        supervisor.unload(A)
        await settled(supervisor, A, S.COLD)
        await look(supervisor, sized(stage, A, 600))
        assert (dict(ledger.held), ledger.left_mb) == ({}, 500)
        await supervisor.told_memory(tell(4500, wired_mb=2101))
        assert ledger.left_mb == 500, "a fifth of it is not back yet"
        await supervisor.told_memory(tell(5000, wired_mb=2100))
        assert (ledger.left_mb, supervisor.awaits_memory()) == (0, False)


def test_wired_memory_is_not_waited_for_without_end_nor_for_nothing() -> None:
    wired = WiredReturn()
    for model, grown in ((A, 1000), (B, 255)):
        wired.observe(model, S.STARTING, 2000)
        wired.observe(model, S.READY, 2000 + grown)
    assert wired.ended(B, "b", 2255, 10.0) == 0, "others change as much"
    assert wired.ended(A, "a", 3000, 10.0) == 1000
    assert wired.look(2900, 24.9) == []
    assert wired.look(2900, 25.0) == [("a", False)]
    assert not wired.is_waiting
    assert wired.ended(A, "a", 3000, 10.0) == 0, "what it had grown by was told once"
    linux = WiredReturn()
    linux.observe(A, S.STARTING, None)
    linux.observe(A, S.READY, None)
    assert linux.ended(A, "a", None, 0.0) == 0


@given(st.lists(st.tuples(st.sampled_from(["reserve", "leave", "recover"]), st.integers(0, 60))))
def test_what_was_left_is_never_given_to_another(steps: list[tuple[str, int]]) -> None:
    ledger = Ledger(100)
    for move, mb in steps:
        if move == "reserve":
            ledger.reserve(M, mb)
        elif move == "leave":
            ledger.leave(M, "left", mb)
        else:
            ledger.recover("left")
        assert ledger.held_mb == sum(ledger.held.values()) + ledger.left_mb
        assert 0 <= ledger.free_mb == 100 - ledger.held_mb


def test_pins_and_peaks_outlive_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "agent" / "memory.json"
    first = Remembered()
    memo = Memo(path, first)
    first.set_pin(A, is_pinned=True)
    first.set_pin(B, is_pinned=False)
    first.saw(A, "c1", 700)
    first.saw(A, "c1", 650)
    memo.save()
    second = Remembered()
    Memo(path, second)
    assert (second.pin(A), second.pin(B), second.pin(M)) == (True, False, None)
    assert second.peak_mb(A, "c1") == 700
    assert second.peak_mb(A, "c2") is None, "another configuration takes something else"
    second.keep([B])
    assert second.pin(A) is None


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 9}', '{"pins": {"a": "maybe"}}', '{"peaks": [{"model": "a"}]}']
)
def test_a_file_that_is_not_good_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "memory.json"
    path.write_text(text)
    remembered = Remembered()
    memo = Memo(path, remembered)
    assert remembered.pin(A) is None
    remembered.saw(A, "c", 5)
    memo.save()
    assert json.loads(path.read_text())["peaks"] == [{"model": "a", "config_hash": "c", "mb": 5}]


async def test_what_is_learnt_is_written_at_once_and_trifles_are_not(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    remembered = Remembered()
    memo = Memo(path, remembered)

    async def written(is_there: str) -> None:
        with anyio.fail_after(30):
            while not path.exists() or is_there not in path.read_text():
                await anyio.sleep(0.005)

    async with anyio.create_task_group() as group:
        group.start_soon(memo.run)
        remembered.set_pin(A, is_pinned=True)
        await written('"a": true')
        remembered.saw(A, "c", 700)
        await written("700")
        told: list[None] = []
        remembered.on_change = lambda: told.append(None)
        remembered.saw(A, "c", 715)
        assert not told
        remembered.saw(A, "c", 716)
        assert told
        group.cancel_scope.cancel()


async def test_the_watch_looks_oftener_while_somebody_waits() -> None:
    told: list[MachineMemory | None] = []
    waits: list[float] = []

    async def take(memory: MachineMemory | None) -> None:
        told.append(memory)

    class Enough(Exception):
        pass

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise Enough

    memory = MachineMemory(available_mb=1, idle_mb=1)
    watch = MachineWatch(take, lambda: len(told) == 2, read=lambda: memory, sleep=sleep)
    with pytest.raises(Enough):
        await watch.run()
    assert told == [memory, memory]
    assert waits[0] > waits[1]


def test_this_machine_tells() -> None:
    memory = machine_memory()
    assert memory is not None
    assert memory.available_mb > 0


def test_machines_have_names() -> None:
    x86 = "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nmodel name\t: AMD EPYC 7B13\n"
    assert processor_of(x86) == "AMD EPYC 7B13"
    assert processor_of("processor\t: 0\nBogoMIPS\t: 48.00\n") is None
    assert machine_name("Apple M1", 8, 16_384).startswith("Apple M1, 8 cores, 16 GiB, ")
