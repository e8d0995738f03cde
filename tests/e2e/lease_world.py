"""A simulated site: lease cores of agents, the router's lease desk over a registry, and a network
that loses, delays, repeats and reorders. Nothing sleeps: time is what the simulation says.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, insert
from sqlalchemy.pool import StaticPool

from local_agent.control.lease import message
from local_agent.control.lease_core import Answer, LeaseCore, LeaseStatus, Refused
from router.fleet.deployments import agent_endpoint
from router.fleet.leases import LeaseDesk
from router.fleet.membership import LeaseState, Member, Membership
from router.fleet.registry import Fleet
from router.store import agents as store
from router.store.bridge import StoredLeases
from router.store.errors import StoreError
from router.store.reader import load_leases
from router.store.tables import meta, metadata
from shared.contracts.agents import (
    AgentModel,
    AgentState,
    Capacity,
    Heartbeat,
    Power,
    Queue,
    Registration,
)
from shared.http.errors import ApiError

T = TypeVar("T")
TTL_S, RENEW_S, TIMEOUT_S, POLL_S = 30.0, 10.0, 5.0, 0.5
CREDENTIAL = "sk-iir-simulated"


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("it waited")


class Registry:
    """The real tables in memory, in place of the writer's thread."""

    def __init__(self) -> None:
        self.is_away = False
        self.writes = 0
        self._engine = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        metadata.create_all(self._engine)
        with self._engine.begin() as connection:
            for key in ("catalog_version", "lease_version"):
                connection.execute(insert(meta).values(key=key, value="1"))

    async def run(self, write: Callable[[Connection], T]) -> T:
        if self.is_away:
            raise StoreError("the disk is full")
        return self.do(write)

    def do(self, what: Callable[[Connection], T]) -> T:
        with self._engine.begin() as connection:
            self.writes += 1
            return what(connection)

    def close(self) -> None:
        self._engine.dispose()


@dataclass
class Process:
    """One start of an agent, and what it last had to tell: `version` grows with each change."""

    row_id: int
    incarnation: int
    core: LeaseCore
    version: int = 0
    drains: bool = False
    is_alive: bool = True
    waits_for: int | None = None
    sent: list[float] = field(default_factory=list)

    @property
    def talks(self) -> bool:
        return self.is_alive and self.core.status is not LeaseStatus.SUPERSEDED

    @property
    def token(self) -> str:
        return f"token-of-{self.incarnation}".ljust(20, "-")

    def registration(self) -> Registration:
        return Registration(
            incarnation=self.incarnation,
            name=f"mac{self.row_id}",
            base_url=f"http://127.0.0.1:{5000 + self.row_id}",
            access_token=self.token,
            models=(AgentModel(id=f"model-{self.row_id}"),),
        )

    def state(self) -> AgentState:
        return "draining" if self.drains else "ready"

    def queue(self) -> Queue:
        return Queue(waiting=self.version)

    def power(self) -> Power:
        return Power()

    def reason(self) -> str | None:
        return None

    def capacity(self) -> Capacity:
        return Capacity(budget_bytes=100, free_bytes=self.version)

    async def changed(self) -> None:
        raise AssertionError("the world calls `hasten`")


Goodbye = tuple[int, int]
Said = Registration | Heartbeat | Goodbye


class World:
    """Everything; `now` is the monotonic time of all machines, `wall` the wall clock's offset."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.now, self.wall = 1000.0, 1_700_000_000.0
        self.is_wild = True
        self.is_cut = False
        self.is_stopped = False
        self.registry = Registry()
        self.rows: list[int] = []
        self.revoked: set[int] = set()
        self.processes: list[Process] = []
        self.heard: dict[int, tuple[int, int]] = {}
        self.heard_at: dict[int, float] = {}
        self.stopped_at = 0.0
        self.newest: dict[int, int] = {}
        self._events: list[tuple[float, int, int, Callable[[], None]]] = []
        self._ids = count()
        self._boots = 0
        for number in range(3):
            name = f"mac{number + 1}"
            self.registry.do(lambda c, n=name: store.add_agent(c, n))  # type: ignore[misc]
            self.rows.append(number + 1)
            self.start(number + 1)
        self.boot()

    # -- what a site does

    def boot(self) -> None:
        """Start the router, from what the registry says; what was on its way to the last one is lost."""
        self._boots += 1
        self.is_stopped = False
        self.membership = Membership(lambda: self.now, TTL_S, lambda: self.now + self.wall)
        self.fleet = Fleet(self.membership, lambda _: None)
        self.desk = LeaseDesk(
            self.fleet,
            StoredLeases(self.registry),  # type: ignore[arg-type] # has its `run`
            ttl_s=TTL_S,
            renew_s=RENEW_S,
            allowed_addresses=frozenset(),
            epoch=f"boot-{self._boots}",
        )
        self.heard.clear()
        self.heard_at.clear()
        self._merged = -1
        self._merge()
        for member in self.membership:
            self.heard[member.row_id] = member.registration.incarnation, member.seq
            self.heard_at[member.row_id] = self.now

    def start(self, row_id: int) -> Process:
        """Start an agent; one that runs already goes on."""
        wall_ms = int((self.now + self.wall) * 1000)
        incarnation = max(wall_ms, self.newest.get(row_id, 0) + 1)
        self.newest[row_id] = incarnation
        made = Process(row_id, incarnation, LeaseCore(Random(self.rng.random())))
        self.processes.append(made)
        return made

    def kill(self, row_id: int) -> None:
        for process in self._alive(row_id):
            process.is_alive = False

    def change(self, row_id: int) -> None:
        for process in self._alive(row_id):
            process.version += 1
            process.core.hasten(self.now)

    def drain(self, row_id: int) -> None:
        for process in self._alive(row_id)[-1:]:
            process.drains = True
            process.core.hasten(self.now)

    def leave(self, row_id: int) -> None:
        """Let an agent say goodbye and end."""
        for process in self._alive(row_id)[-1:]:
            process.is_alive = False
            if process.core.status is LeaseStatus.HELD:
                self._carry(process, (process.incarnation, process.core.next_seq()), None)

    def revoke(self, row_id: int) -> None:
        if not self.registry.is_away and row_id not in self.revoked:
            self.registry.do(lambda c: store.revoke_agent(c, f"mac{row_id}"))
            self.revoked.add(row_id)

    def calm(self) -> None:
        """End all trouble; what is still on its way comes yet."""
        self.is_wild = self.is_cut = self.registry.is_away = self.is_stopped = False

    def wait(self, seconds: float, check: Callable[[], None]) -> None:
        """Let time pass; `check` is called after whatever happens."""
        end = self.now + seconds
        while self.now < end:
            for process in self.processes:
                self._step(process)
            while self._events and self._events[0][0] <= self.now:
                self._happen(heapq.heappop(self._events))
                check()
            self._tend()
            check()
            self.now = min(self._next(end), end)

    @property
    def is_behind(self) -> bool:
        """Tell whether the router has yet to read what was written last."""
        return self._merged != self.registry.writes

    # -- how

    def _alive(self, row_id: int) -> list[Process]:
        return [p for p in self.processes if p.row_id == row_id and p.is_alive]

    def _tend(self) -> None:
        """Do what the router does a few times a second."""
        if self.is_stopped:
            self.stopped_at = self.now
        else:
            self._merge()
            self.fleet.forget_gone()
            with suppress(OSError):
                at_once(self.desk.flush())

    def _merge(self) -> None:
        if self.is_behind:
            book = self.registry.do(load_leases)
            self._merged = self.registry.writes
            self.membership.merge(book, self.now)
            self.fleet.patch()

    def _step(self, process: Process) -> None:
        if not process.talks:
            return
        if process.waits_for is None and process.core.look(CREDENTIAL, self.now) <= 0:
            due = process.core.send(self.now)
            process.sent.append(self.now)
            process.waits_for = due.seq
            self._carry(process, message(due, process), due.seq)
            self._at(self.now + TIMEOUT_S, lambda: self._answer(process, due.seq, Refused(0)), 0)

    def _carry(self, process: Process, said: Said, seq: int | None) -> None:
        copies = [0.0]
        if self.is_wild:
            delays = [self.rng.choice([0.0, 0.01, 3.0, 8.0, 45.0]) for _ in range(3)]
            copies = delays[: self.rng.choice([0, 1, 1, 1, 2, 3])]
        for delay in copies:
            self._at(self.now + delay, lambda: self._arrive(process, said, seq), self._boots)

    def _arrive(self, process: Process, said: Said, seq: int | None) -> None:
        if self.is_cut:
            return
        answer = self._serve(process, said)
        if self.is_wild and self.rng.random() < 0.2:
            return  # the answer is lost
        if seq is not None:
            self._answer(process, seq, answer)

    def _serve(self, process: Process, said: Said) -> Answer:
        row_id, agent_id = process.row_id, f"id-{process.row_id}"
        if row_id in self.revoked:
            return Refused(401, "invalid_api_key")
        try:
            if isinstance(said, tuple):
                at_once(self.desk.release(row_id, agent_id, *said))
                self._note(row_id, said)
                return Refused(204)
            if isinstance(said, Heartbeat):
                answer = self.desk.renew(row_id, agent_id, said)
            else:
                name = f"mac{row_id}"
                answer = at_once(self.desk.register(row_id, name, agent_id, said, "127.0.0.1"))
        except ApiError as error:
            return Refused(error.status, error.code)
        self._note(row_id, (said.incarnation, said.seq or 0))
        return answer

    def _note(self, row_id: int, said: tuple[int, int]) -> None:
        if said > self.heard.get(row_id, (0, -1)):
            self.heard[row_id], self.heard_at[row_id] = said, self.now

    def _answer(self, process: Process, seq: int, answer: Answer) -> None:
        if process.is_alive and process.waits_for == seq:
            process.waits_for = None
            process.core.hear(answer, self.now)

    def _at(self, when: float, what: Callable[[], None], boot: int) -> None:
        heapq.heappush(self._events, (when, next(self._ids), boot, what))

    def _happen(self, event: tuple[float, int, int, Callable[[], None]]) -> None:
        _, _, boot, what = event
        if boot and self.is_stopped:
            self._at(self.now + POLL_S, what, boot)  # it lies in the socket
        elif boot in {0, self._boots}:
            what()

    def _next(self, end: float) -> float:
        times = [self.now + POLL_S, end]
        if self._events:
            times.append(max(self._events[0][0], self.now + 1e-3))
        for process in self.processes:
            if process.talks and process.waits_for is None:
                wait_s = process.core.look(CREDENTIAL, self.now)
                times.append(self.now + max(wait_s, 1e-3))
        return min(times)

    # -- what is seen of it

    def state(self, row_id: int) -> LeaseState:
        member = self.membership.get(row_id)
        return LeaseState.EXPIRED if member is None else self.membership.state(member)

    def member(self, row_id: int) -> Member:
        found = self.membership.get(row_id)
        assert found is not None
        return found

    def routed_token(self, row_id: int) -> str | None:
        """Return the token that a request for this agent's model would show; None: there is no way."""
        try:
            found = self.fleet.resolve(f"model-{row_id}").candidates[0]
        except ApiError:
            return None
        assert found.deployment.endpoint == agent_endpoint(self.member(row_id))
        return found.deployment.endpoint.credential
