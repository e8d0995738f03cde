"""Agents and their leases, on this process's own clock.

A lease is timed from when this process saw its last new `seq`, so clocks need not agree:
suspect after 1 × TTL, expired after 2 × TTL, gone after a day (`local-agent.md`, "Registration and
lease").

What an agent says is ordered by incarnation and `seq`, whatever the order in which it comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from router.domain import AgentRecord, LeaseBook
from router.fleet.silence import Silences
from shared.contracts.agents import AgentModel, Heartbeat, Registration
from shared.kit.clock import Clock, wall_time

GONE_S = 86400.0
_NEVER = -1


class LeaseState(str, Enum):
    """How much an agent can be trusted to answer."""

    LIVE = "live"
    SUSPECT = "suspect"
    EXPIRED = "expired"
    GONE = "gone"

    @property
    def is_routable(self) -> bool:
        """Tell whether requests may be sent there."""
        return self in {LeaseState.LIVE, LeaseState.SUSPECT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An agent that registered, with what it last said and when this process heard it.

    `name` is the registry's, which is unique; what the agent calls itself is a label.
    `ended_lease_id` and `ended_seq` are of the goodbye that it said to this process. `is_doubted`:
    a call failed since it was heard.
    """

    row_id: int
    name: str
    agent_id: str
    registration: Registration
    lease_id: str | None
    heartbeat: Heartbeat | None
    heard_at: float
    ended_lease_id: str | None = None
    ended_seq: int = _NEVER
    is_doubted: bool = False

    @property
    def models(self) -> tuple[AgentModel, ...]:
        """Return the agent's models as it last described them."""
        if self.heartbeat is not None and self.heartbeat.models is not None:
            return self.heartbeat.models
        return self.registration.models

    @property
    def queued(self) -> int:
        """Return how many requests wait on the agent."""
        return self._last.queue.waiting

    @property
    def takes_work(self) -> bool:
        """Tell whether the agent has a lease and is not draining."""
        return self.lease_id is not None and self._last.state != "draining"

    @property
    def seq(self) -> int:
        """Return the number of the newest message; -1 if none had one (older agents)."""
        last = self._last.seq
        return max(_NEVER if last is None else last, self.ended_seq)

    @property
    def _last(self) -> Heartbeat | Registration:
        return self.registration if self.heartbeat is None else self.heartbeat

    def has_heard(self, incarnation: int, seq: int | None) -> bool:
        """Tell whether a message is older than what was heard, or is that; None: it is not numbered."""
        known = self.registration.incarnation
        if incarnation != known:
            return incarnation < known
        return seq is not None and seq <= self.seq


class Membership:
    """All agents this process knows. Methods never await, so each is atomic on the loop."""

    def __init__(self, clock: Clock, ttl_s: float, wall: Clock = wall_time) -> None:
        """Begin with nobody.

        Args:
            clock: a monotonic one, by which leases are judged.
            ttl_s: how long a lease lasts.
            wall: the wall clock, in s since 1970; only tells what was written long ago.
        """
        self._clock = clock
        self._ttl_s = ttl_s
        self._wall = wall
        self._members: dict[int, Member] = {}
        self._row_ids: dict[str, int] = {}
        self.silences = Silences(ttl_s)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, row_id: int) -> Member | None:
        """Return the agent with this row, if it registered."""
        return self._members.get(row_id)

    def named(self, name: str) -> Member | None:
        """Return the agent that the registry calls so; None if there is none."""
        row_id = self._row_ids.get(name)
        return None if row_id is None else self._members.get(row_id)

    def state(self, member: Member) -> LeaseState:
        """Return what the lease is worth now."""
        now = self._clock()
        age_s = now - member.heard_at
        if age_s >= GONE_S:
            return LeaseState.GONE
        if not member.takes_work:
            return LeaseState.EXPIRED
        if age_s < self._ttl_s and not member.is_doubted:
            return LeaseState.LIVE
        if age_s < 2 * self._ttl_s or self._is_spared(member, now):
            return LeaseState.SUSPECT
        return LeaseState.EXPIRED

    def is_lost(self, member: Member) -> bool:
        """Tell whether an agent fell silent: it gave no lease back, and does not renew it."""
        now = self._clock()
        is_silent = now - member.heard_at >= 2 * self._ttl_s
        return is_silent and member.lease_id is not None and not self._is_spared(member, now)

    def gone(self) -> frozenset[int]:
        """Return the agents of which nothing was heard for a day."""
        return frozenset(m.row_id for m in self if self.state(m) is LeaseState.GONE)

    def doubtful(self) -> list[Member]:
        """Return the silent agents that a probe has to judge: so many are silent at once."""
        now = self._clock()
        return [
            member
            for member in self
            if member.takes_work
            and now - member.heard_at >= 2 * self._ttl_s
            and self._is_spared(member, now)
            and self.silences.is_due(member.row_id, now)
        ]

    def vouch(self, member: Member, *, is_there: bool) -> None:
        """Take what a probe of a silent agent found; what was heard of it meanwhile counts more."""
        known = self._members.get(member.row_id)
        if known is not None and known.heard_at == member.heard_at:
            self.silences.judge(member.row_id, self._clock(), is_there=is_there)

    def doubt(self, name: str) -> None:
        """Note that a call to this agent failed: until it is heard again, others go first."""
        member = self.named(name)
        if member is not None and not member.is_doubted:
            self._members[member.row_id] = replace(member, is_doubted=True)

    def register(
        self, row_id: int, name: str, agent_id: str, registration: Registration, lease_id: str
    ) -> Member | None:
        """Take an agent in, or take its new registration; None if something newer was heard."""
        known = self._members.get(row_id)
        if (
            known is not None
            and known.agent_id == agent_id
            and known.has_heard(registration.incarnation, registration.seq)
        ):
            return None
        member = Member(
            row_id=row_id,
            name=name,
            agent_id=agent_id,
            registration=registration,
            lease_id=lease_id,
            heartbeat=None,
            heard_at=self._clock(),
        )
        self._put(member)
        return member

    def renew(self, row_id: int, heartbeat: Heartbeat) -> Member | None:
        """Renew a lease; None if it is not the agent's present one.

        A `seq` that is not newer renews nothing: it is a duplicate or came late.
        """
        member = self._members.get(row_id)
        if member is None or member.lease_id != heartbeat.lease_id:
            return None
        if heartbeat.seq <= member.seq:
            return member
        if heartbeat.models is None:
            heartbeat = heartbeat.model_copy(update={"models": member.models})
        member = replace(member, heartbeat=heartbeat, heard_at=self._clock(), is_doubted=False)
        self._put(member)
        return member

    def release(self, row_id: int, seq: int | None = None) -> None:
        """End a lease: its agent said goodbye, as its message `seq`."""
        member = self._members.get(row_id)
        if member is not None:
            ended = member.lease_id or member.ended_lease_id
            last = member.seq if seq is None else max(seq, member.seq)
            self._put(replace(member, lease_id=None, ended_lease_id=ended, ended_seq=last))

    def now(self) -> float:
        """Return the time by which leases are judged."""
        return self._clock()

    def merge(self, book: LeaseBook, read_at: float) -> None:
        """Take what other processes wrote; what this one heard itself and is newer stays.

        `read_at` is when the book began to be read: it knows nothing of what was heard since.
        """
        present = {record.row_id for record in book.agents}
        for row_id in [row_id for row_id in self._members if row_id not in present]:
            self._drop(row_id)
        for record in book.agents:
            known = self._members.get(record.row_id)
            if record.registration is None or record.agent_id is None:
                if known is not None and known.heard_at < read_at:
                    self._drop(record.row_id)  # its credential was replaced
                continue
            if known is None or _is_newer(record, known):
                self._put(
                    Member(
                        row_id=record.row_id,
                        name=record.name,
                        agent_id=record.agent_id,
                        registration=record.registration,
                        lease_id=record.lease_id,
                        heartbeat=record.heartbeat,
                        heard_at=self._written_at(record),
                    )
                )
            elif known.heard_at < read_at and _was_released(record, known):
                self._put(replace(known, lease_id=None))

    def _written_at(self, record: AgentRecord) -> float:
        """Return when a record counts as heard.

        What was written long ago, by the wall clock, may be of an agent that is no more: it is
        suspect from the start. Nothing worse, since that clock may have been set.
        """
        now = self._clock()
        if record.renewed_at is None:
            return now
        age_s = self._wall() - record.renewed_at
        return now if 0 <= age_s < 2 * self._ttl_s else now - self._ttl_s

    def _is_spared(self, member: Member, now: float) -> bool:
        return self.silences.is_spared(
            member.row_id, now, ((m.row_id, m.heard_at) for m in self if m.lease_id is not None)
        )

    def _put(self, member: Member) -> None:
        known = self._members.get(member.row_id)
        if known is None or known.heard_at != member.heard_at:
            self.silences.end(member.row_id)
        self._members[member.row_id] = member
        self._row_ids[member.name] = member.row_id

    def _drop(self, row_id: int) -> None:
        name = self._members.pop(row_id).name
        if self._row_ids.get(name) == row_id:  # it may be another one's by now
            del self._row_ids[name]
        self.silences.end(row_id)


def _was_released(record: AgentRecord, known: Member) -> bool:
    """Tell whether another process took the lease back, and not one of an earlier start."""
    if record.registration is None or record.lease_id is not None or known.lease_id is None:
        return False
    return record.registration.incarnation >= known.registration.incarnation


def _is_newer(record: AgentRecord, known: Member) -> bool:
    if record.registration is None or record.lease_id is None:
        return False
    said = record.registration
    if said.incarnation != known.registration.incarnation:
        return said.incarnation > known.registration.incarnation
    last = said.seq if record.heartbeat is None else record.heartbeat.seq
    if record.lease_id != known.lease_id:
        if said.seq is not None:  # its messages are numbered through
            return (_NEVER if last is None else last) > known.seq
        return known.lease_id is None and record.lease_id != known.ended_lease_id
    return (_NEVER if last is None else last) > known.seq
