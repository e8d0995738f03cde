"""Agents and their leases, on this process's own clock.

A lease is timed from when this process saw its last new `seq`, so clocks need not agree:
suspect after 1 × TTL, expired after 2 × TTL (`local-agent.md`, "Registration and lease").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from router.domain import AgentRecord, LeaseBook
from shared.contracts.agents import AgentModel, Heartbeat, Registration
from shared.kit.clock import Clock


class LeaseState(str, Enum):
    """How much an agent can be trusted to answer."""

    LIVE = "live"
    SUSPECT = "suspect"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An agent that registered, with what it last said and when this process heard it.

    `name` is the registry's, which is unique; what the agent calls itself is a label.
    `ended_lease_id` is the lease that it gave back to this process.
    """

    row_id: int
    name: str
    agent_id: str
    registration: Registration
    lease_id: str | None
    heartbeat: Heartbeat | None
    heard_at: float
    ended_lease_id: str | None = None

    @property
    def models(self) -> tuple[AgentModel, ...]:
        """Return the agent's models as it last described them."""
        if self.heartbeat is not None and self.heartbeat.models is not None:
            return self.heartbeat.models
        return self.registration.models

    @property
    def queued(self) -> int:
        """Return how many requests wait on the agent."""
        return self.heartbeat.queue.waiting if self.heartbeat else 0

    @property
    def takes_work(self) -> bool:
        """Tell whether the agent has a lease and is not draining."""
        draining = self.heartbeat is not None and self.heartbeat.state == "draining"
        return self.lease_id is not None and not draining


class Membership:
    """All agents this process knows. Methods never await, so each is atomic on the loop."""

    def __init__(self, clock: Clock, ttl_s: float) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._members: dict[int, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, row_id: int) -> Member | None:
        """Return the agent with this row, if it registered."""
        return self._members.get(row_id)

    def state(self, member: Member) -> LeaseState:
        """Return what the lease is worth now."""
        if not member.takes_work:
            return LeaseState.EXPIRED
        age_s = self._clock() - member.heard_at
        if age_s < self._ttl_s:
            return LeaseState.LIVE
        return LeaseState.SUSPECT if age_s < 2 * self._ttl_s else LeaseState.EXPIRED

    def is_lost(self, member: Member) -> bool:
        """Tell whether an agent fell silent: it gave no lease back, and does not renew it."""
        is_silent = self._clock() - member.heard_at >= 2 * self._ttl_s
        return is_silent and member.lease_id is not None

    def register(
        self, row_id: int, name: str, agent_id: str, registration: Registration, lease_id: str
    ) -> Member:
        """Take an agent in, or take its new registration."""
        member = Member(
            row_id=row_id,
            name=name,
            agent_id=agent_id,
            registration=registration,
            lease_id=lease_id,
            heartbeat=None,
            heard_at=self._clock(),
        )
        self._members[row_id] = member
        return member

    def renew(self, row_id: int, heartbeat: Heartbeat) -> Member | None:
        """Renew a lease; None if it is not the agent's present one.

        A `seq` that is not newer renews nothing: it is a duplicate or came late.
        """
        member = self._members.get(row_id)
        if member is None or member.lease_id != heartbeat.lease_id:
            return None
        if member.heartbeat is not None and heartbeat.seq <= member.heartbeat.seq:
            return member
        if heartbeat.models is None:
            heartbeat = heartbeat.model_copy(update={"models": member.models})
        member = replace(member, heartbeat=heartbeat, heard_at=self._clock())
        self._members[row_id] = member
        return member

    def release(self, row_id: int) -> None:
        """End a lease: its agent said goodbye."""
        member = self._members.get(row_id)
        if member is not None:
            ended = member.lease_id or member.ended_lease_id
            self._members[row_id] = replace(member, lease_id=None, ended_lease_id=ended)

    def now(self) -> float:
        """Return the time by which leases are judged."""
        return self._clock()

    def merge(self, book: LeaseBook, read_at: float) -> None:
        """Take what other processes wrote; what this one heard itself and is newer stays.

        `read_at` is when the book began to be read: it knows nothing of what was heard since.
        """
        present = {record.row_id for record in book.agents}
        for row_id in [row_id for row_id in self._members if row_id not in present]:
            del self._members[row_id]
        for record in book.agents:
            known = self._members.get(record.row_id)
            if record.registration is None or record.agent_id is None:
                if known is not None and known.heard_at < read_at:
                    del self._members[record.row_id]  # its credential was replaced
                continue
            if known is None or _is_newer(record, known):
                self._members[record.row_id] = Member(
                    row_id=record.row_id,
                    name=record.name,
                    agent_id=record.agent_id,
                    registration=record.registration,
                    lease_id=record.lease_id,
                    heartbeat=record.heartbeat,
                    heard_at=self._clock(),
                )
            elif known.heard_at < read_at and _was_released(record, known):
                self._members[record.row_id] = replace(known, lease_id=None)


def _was_released(record: AgentRecord, known: Member) -> bool:
    """Tell whether another process took the lease back, and not one of an earlier start."""
    if record.registration is None or record.lease_id is not None or known.lease_id is None:
        return False
    return record.registration.incarnation >= known.registration.incarnation


def _is_newer(record: AgentRecord, known: Member) -> bool:
    if record.registration is None or record.lease_id is None:
        return False
    if record.registration.incarnation != known.registration.incarnation:
        return record.registration.incarnation > known.registration.incarnation
    if record.lease_id != known.lease_id:
        return known.lease_id is None and record.lease_id != known.ended_lease_id
    theirs = record.heartbeat.seq if record.heartbeat else -1
    ours = known.heartbeat.seq if known.heartbeat else -1
    return theirs > ours
