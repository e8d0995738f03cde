"""Models that share memory: swaps are rare enough, and nobody waits for too long. Pure, in virtual time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_agent.catalog import catalog
from local_agent.domain import (
    Deployment,
    Desired,
    Drain,
    HostFacts,
    ModelId,
    Start,
    Stop,
    WorkerState,
    WorkerStatus,
)
from local_agent.engines import ENGINES
from local_agent.lifecycle import ALIVE
from local_agent.memory.ledger import Ledger
from local_agent.memory.machine import MachineMemory
from local_agent.memory.residency import Residency
from local_agent.planner import plan

S = WorkerState
HOST = HostFacts(platform="linux", arch="x86_64", memory_mb=8000)
LOAD_S, MIN_RESIDENCY_S, SWAP_AFTER_S = 3.0, 10.0, 30.0
UNKNOWN = Deployment(model=ModelId("a"), engine="simulated")
LONGEST_S = 20.0
"""The longest that a request takes."""


@dataclass
class World:
    """Engines that load in `LOAD_S` and end at once, and requests that take as long as they say."""

    sizes: dict[str, int]
    budget_mb: int
    priorities: dict[str, int] = field(default_factory=dict)
    tick_s: float = 0.0
    """How far the clock goes on with each look at it; timers come one and a half of that too early."""

    def __post_init__(self) -> None:
        self.now = 0.0
        deployments = [
            Deployment(
                model=ModelId(name),
                engine="simulated",
                memory_mb=mb,
                priority=self.priorities.get(name, 0),
            )
            for name, mb in self.sizes.items()
        ]
        self.entries = catalog(deployments, ENGINES, HOST).entries
        self.residency = Residency(
            self._clock,
            Ledger(self.budget_mb),
            lambda _: 0,
            min_residency_s=MIN_RESIDENCY_S,
            swap_after_s=SWAP_AFTER_S,
        )
        self.residency.set_entries(self.entries)
        self.statuses = {model: WorkerStatus() for model in self.entries}
        self.waiting: dict[ModelId, list[tuple[float, float]]] = {m: [] for m in self.entries}
        self.events: list[tuple[float, int, str, ModelId, float]] = []
        self.waits: dict[ModelId, list[float]] = {model: [] for model in self.entries}
        self.loads: list[tuple[float, ModelId]] = []
        self.ages: list[float] = []
        """How old each model was when it was told to go."""

    def _clock(self) -> float:
        self.now += self.tick_s
        return self.now

    def at(self, when: float, what: str, model: str, value: float = 0.0) -> None:
        heapq.heappush(self.events, (when, len(self.events), what, ModelId(model), value))

    def run(self, arrivals: Iterable[tuple[float, str, float]]) -> None:
        """Let requests come (when, for which model, how long it takes), and serve them all."""
        for when, model, takes_s in arrivals:
            self.at(when, "comes", model, takes_s)
        for _ in range(100_000):
            self._settle()
            due = self.residency.next_due(self._observed())
            due = math.inf if due is None else due
            if self.events and self.events[0][0] <= due:
                self.now, _, what, model_id, value = heapq.heappop(self.events)
                self._happen(what, model_id, value)
            elif due < math.inf:
                self.now = max(self.now, due - 1.5 * self.tick_s)
            else:
                break
        assert not any(self.waiting.values()), "somebody was forgotten"

    def _become(self, model: ModelId, state: S) -> None:
        self.statuses[model] = replace(
            self.statuses[model],
            state=state,
            since=self.now,
            config_hash=self.entries[model].deployment.config_hash,
        )

    def _happen(self, what: str, model: ModelId, value: float) -> None:
        if what == "comes":
            self.waiting[model].append((self.now, value))
        elif what == "loaded":
            self._become(model, S.READY)
            self.residency.loaded(model, LOAD_S)
        else:
            self._busy(model, -1)
            self.residency.left(model)

    def _busy(self, model: ModelId, change: int) -> None:
        status = self.statuses[model]
        self.statuses[model] = replace(status, in_flight=status.in_flight + change)

    def _observed(self) -> dict[ModelId, WorkerStatus]:
        return {
            model: replace(status, waiting=len(self.waiting[model]))
            for model, status in self.statuses.items()
        }

    def _settle(self) -> None:
        for model, queue in self.waiting.items():
            while queue and self.statuses[model].state is S.READY:
                came_at, takes_s = queue.pop(0)
                self.waits[model].append(self.now - came_at)
                self.residency.entered(model)
                self._busy(model, 1)
                self.at(self.now + takes_s, "ends", model)
        while True:
            observed = self._observed()
            self.residency.settle(observed)
            assert self.residency.ledger.held_mb <= self.budget_mb
            actions = plan(self._desired(observed), observed, self.now)
            if not actions:
                return
            for action in actions:
                self._act(action)

    def _desired(self, observed: dict[ModelId, WorkerStatus]) -> dict[ModelId, Desired]:
        return {
            model: Desired(
                deployment=entry.deployment,
                is_wanted=self.residency.is_wanted(model, observed[model]),
                is_patient=self.residency.why_leaving(model) is not None,
            )
            for model, entry in self.entries.items()
        }

    def _act(self, action: object) -> None:
        match action:
            case Start(deployment):
                self._become(deployment.model, S.LOADING)
                self.loads.append((self.now, deployment.model))
                self.at(self.now + LOAD_S, "loaded", deployment.model)
            case Drain(model):
                self.ages.append(self.now - self.statuses[model].since)
                self._become(model, S.DRAINING)
            case Stop(model):
                if self.statuses[model].state is S.READY:
                    self.ages.append(self.now - self.statuses[model].since)
                assert not self.statuses[model].in_flight, "in-flight work was killed"
                assert self.statuses[model].state in ALIVE
                self._become(model, S.COLD)
            case _:
                raise AssertionError(action)


def steady(
    model: str, every_s: float, takes_s: float, until_s: float
) -> list[tuple[float, str, float]]:
    count = int(until_s / every_s)
    return [(n * every_s, model, takes_s) for n in range(count)]


def test_runs_on_one_model_are_collated_up_to_the_limit() -> None:
    """Both are asked for all the time: each is served for a while, and each gets its turn."""
    world = World({"a": 60, "b": 60}, budget_mb=100)
    world.run([*steady("a", 1.0, 2.0, 600), *steady("b", 1.3, 2.0, 600)])
    a_turn = SWAP_AFTER_S + LOAD_S
    assert 600 / (a_turn + 5) - 1 <= len(world.loads) <= 600 / SWAP_AFTER_S + 2
    assert all(age >= SWAP_AFTER_S - LOAD_S - 1e-6 for age in world.ages[:-1])
    for waits in world.waits.values():
        assert max(waits) <= SWAP_AFTER_S + 2.0 + LOAD_S + 1.3


def test_an_idle_model_makes_room_as_soon_as_it_may() -> None:
    world = World({"a": 60, "b": 60}, budget_mb=100)
    world.run([(0, "a", 1.0), (1, "b", 1.0), (14, "a", 1.0)])
    assert world.waits[ModelId("b")] == [pytest.approx(LOAD_S + MIN_RESIDENCY_S - 1 + LOAD_S)]
    assert world.ages == [pytest.approx(MIN_RESIDENCY_S)] * 2, "and not sooner"


def test_a_short_answer_is_not_kept_waiting_by_a_small_neighbour() -> None:
    """While a large model waits for a busy one, what is free goes to who fits in, for that long only."""
    world = World({"a": 60, "large": 80, "small": 20}, budget_mb=100)
    busy = [(0.0, "a", 20.0), (15.0, "a", 20.0), (30.0, "a", 20.0), (45.0, "a", 20.0)]
    late = [(40.0 + n, "small", 1.0) for n in range(60)]
    world.run([*busy, (5.0, "large", 1.0), (6.0, "small", 1.0), *late])
    assert world.waits[ModelId("small")][0] == pytest.approx(LOAD_S)
    turn = SWAP_AFTER_S + MIN_RESIDENCY_S + LONGEST_S + LOAD_S
    assert max(world.waits[ModelId("large")]) <= turn


def test_a_timer_that_comes_a_moment_too_early_is_not_the_last_one() -> None:
    world = World({"a": 60, "b": 60}, budget_mb=100, tick_s=1e-4)
    world.run([(0, "a", 1.0), (1, "b", 1.0), (14, "a", 100.0), (50, "b", 1.0)])
    assert [model for _, model in world.loads] == ["a", "b", "a", "b"]


def test_the_end_of_a_pause_is_waited_for_until_it_was_seen() -> None:
    """The clock goes on between a look that found nothing to do and the question when to look again."""
    world = World({"a": 60}, budget_mb=100)
    model = ModelId("a")
    resting = {model: WorkerStatus(state=S.BACKOFF, not_before=10.0)}
    world.residency.ask(model)
    world.now = 10.0 - 1e-4
    world.residency.settle(resting)
    world.now = 10.0 + 1e-4
    assert world.residency.next_due(resting) == 10.0
    world.residency.settle(resting)
    assert world.residency.is_wanted(model, resting[model])
    assert world.residency.next_due(resting) is None


def settled(world: World, **states: S) -> dict[ModelId, WorkerStatus]:
    """Let the residency look at workers in these states."""
    observed = {ModelId(name): WorkerStatus(state=state) for name, state in states.items()}
    world.residency.settle(observed)
    return observed


def told(world: World, available_mb: int) -> None:
    memory = MachineMemory(available_mb=available_mb, idle_mb=available_mb)
    world.residency.room.told(memory, world.now)


def test_what_other_programs_never_give_back_keeps_nobody_else_waiting() -> None:
    world = World({"big": 80, "small": 20}, budget_mb=100)
    told(world, 60)
    world.residency.ask(ModelId("big"))
    settled(world, big=S.COLD, small=S.COLD)
    world.now = SWAP_AFTER_S + 1
    world.residency.ask(ModelId("big"))
    world.residency.ask(ModelId("small"))
    observed = settled(world, big=S.COLD, small=S.COLD)
    assert [m for m, status in observed.items() if world.residency.is_wanted(m, status)] == [
        "small"
    ]


def test_nobody_goes_for_what_a_load_may_have_taken_already() -> None:
    world = World({"idle": 20, "big": 60, "new": 15}, budget_mb=100)
    residency, (idle, big, new) = world.residency, world.entries
    for model in (idle, big):
        residency.ask(model)
    settled(world, idle=S.COLD, big=S.COLD, new=S.COLD)
    told(world, 65)  # `big` may have taken all of its 60, or nothing of it
    world.now = MIN_RESIDENCY_S + 1
    residency.ask(new)
    settled(world, idle=S.READY, big=S.LOADING, new=S.COLD)
    assert residency.why_leaving(idle) is None
    told(world, 5)
    settled(world, idle=S.READY, big=S.READY, new=S.COLD)
    assert residency.why_leaving(idle) == "it makes room for new"


def test_a_model_that_did_run_is_never_too_big_for_what_it_was_seen_to_take() -> None:
    world = World({"a": 0}, budget_mb=1000)
    residency, model = world.residency, ModelId("a")
    world.entries = {model: replace(world.entries[model], deployment=UNKNOWN)}
    residency.set_entries(world.entries)
    for mb in (500, 990, 1400):  # shared pages count for each process
        residency.measured(model, mb)
        assert residency.refusal(model) is None
    assert residency.size_mb(model) > 950


def test_a_model_whose_old_process_leaked_is_loaded_anew() -> None:
    world = World({"a": 40}, budget_mb=100)
    residency, model = world.residency, ModelId("a")
    residency.ask(model)
    settled(world, a=S.COLD)
    residency.unload(model, "it was unloaded by command")
    residency.ledger.leave(model, "a (leaked 1)")
    residency.ask(model)
    settled(world, a=S.COLD)
    assert residency.is_wanted(model, WorkerStatus(state=S.STARTING))


def test_among_those_who_wait_the_model_of_more_priority_is_first() -> None:
    world = World({"a": 60, "b": 60, "c": 60}, budget_mb=100, priorities={"c": 5})
    world.run([(0, "a", 1.0), (1, "b", 1.0), (2, "c", 1.0)])
    assert [model for _, model in world.loads] == ["a", "c", "b"]


def test_priority_starves_nobody() -> None:
    world = World({"a": 60, "b": 60, "c": 60}, budget_mb=100, priorities={"b": 5, "c": 5})
    rivals = [*steady("b", 2.0, 1.0, 600), *steady("c", 2.0, 1.0, 600)]
    world.run([*rivals, (1.0, "a", 1.0)])
    turn = SWAP_AFTER_S + MIN_RESIDENCY_S + 1.0 + LOAD_S
    assert max(world.waits[ModelId("a")]) <= 2 * turn


ARRIVALS = st.lists(
    st.tuples(st.floats(0, 300), st.sampled_from("abcd"), st.floats(0.1, LONGEST_S)), max_size=60
)


@settings(deadline=None)
@given(arrivals=ARRIVALS, sizes=st.lists(st.integers(20, 100), min_size=4, max_size=4))
def test_thrash_and_waits_are_bounded_whatever_comes(
    arrivals: list[tuple[float, str, float]], sizes: list[int]
) -> None:
    world = World(dict(zip("abcd", sizes, strict=True)), budget_mb=100)
    world.run(sorted(arrivals))
    assert sum(len(waits) for waits in world.waits.values()) == len(arrivals)
    assert all(age >= MIN_RESIDENCY_S - 1e-6 for age in world.ages), "too young to go"
    lasted_s = world.now + 1
    fit = 100 // min(sizes)  # as many at most are in memory at once
    assert len(world.loads) <= fit * (lasted_s / MIN_RESIDENCY_S + 1)
    turn = SWAP_AFTER_S + MIN_RESIDENCY_S + LONGEST_S + LOAD_S
    longest = max((wait for waits in world.waits.values() for wait in waits), default=0.0)
    assert longest <= len(sizes) * turn
