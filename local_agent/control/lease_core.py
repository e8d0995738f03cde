"""What the agent says to its router, and when: a state machine without I/O or clock.

`LeaseClient` carries it: sends what is due, and tells it what came back. Times are seconds of one
monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from random import Random

from shared.contracts.agents import LeaseGrant
from shared.kit.backoff import backoff_s

LEAST_GAP_S = 0.05
"""However much changes, and whatever the router asks for: messages are never sent closer together."""

_CREDENTIAL_WAIT_S = 60.0
_NEWS_TRIES = 5
_NEWS_S = 1.0
# these of the 4xx say "not now", not "not you"
_MAY_PASS = frozenset({404, 408, 410, 425, 429})


class LeaseStatus(str, Enum):
    """How the agent stands with its router."""

    STARTING = "starting"
    HELD = "held"
    ROUTER_AWAY = "router_away"
    NO_CREDENTIAL = "no_credential"
    REFUSED = "refused"
    SUPERSEDED = "superseded"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Refused:
    """What came in place of a grant.

    `status` is the answer's; 0 where there was none. `code` says what is wrong.
    """

    status: int
    code: str | None = None


Answer = LeaseGrant | Refused


@dataclass(frozen=True, slots=True)
class Due:
    """A message to send now: a heartbeat of the lease `lease_id`; without one, a registration."""

    seq: int
    lease_id: str | None


def next_wait_s(refused: Refused, failures: int, rng: Random) -> float:
    """Return how long to wait after a refusal: the router's absence is met with short backoff."""
    if refused.status in {401, 403}:
        return _CREDENTIAL_WAIT_S
    return backoff_s(failures, rng, first_s=0.5, most_s=5.0)


class LeaseCore:
    """Holds one lease, as far as deciding goes.

    `status` says how it stands, `problem` what code came in place of the last grant, `epoch` which
    start of the router granted the lease.
    """

    def __init__(self, rng: Random) -> None:
        """Take what spreads messages over time."""
        self._rng = rng
        self._grant: LeaseGrant | None = None
        self._seq = 0
        self._failures = 0
        self._news_tries = 0
        self._credential: str | None = None
        self._is_begun = False
        self._sent_at = -inf
        self._due_at = -inf
        self.status = LeaseStatus.STARTING
        self.problem: str | None = None
        self.epoch = ""

    def look(self, credential: str | None, now: float) -> float:
        """Take the present credential; return how long nothing is to be sent.

        A new credential is used at once; without one nothing is sent, for as long as it takes.
        """
        is_new = credential != self._credential
        if is_new or not self._is_begun:
            if self._is_begun:
                self._news_tries = _NEWS_TRIES
            self._is_begun, self._credential, self._failures = True, credential, 0
            self._due_at = now
        if credential is None:
            self.status, self.problem = LeaseStatus.NO_CREDENTIAL, None
            return inf
        return max(self._due_at, self._sent_at + LEAST_GAP_S) - now

    def hasten(self, now: float) -> None:
        """Note that the agent changed: a router that has it is told at once."""
        if self.status is LeaseStatus.HELD:
            self._due_at = min(self._due_at, now)

    def introduce(self) -> None:
        """Let the next message be a registration, and those after it until one is granted."""
        self._grant = None

    def rejoin(self, now: float) -> None:
        """Register at once: the lease was given back."""
        self._grant, self._failures = None, 0
        self.status, self._due_at = LeaseStatus.STARTING, now

    def next_seq(self) -> int:
        """Return the number of a message that is sent beside those that are due: the goodbye."""
        self._seq += 1
        return self._seq

    def send(self, now: float) -> Due:
        """Return what to send now."""
        self._sent_at = now
        return Due(self.next_seq(), None if self._grant is None else self._grant.lease_id)

    def hear(self, answer: Answer, now: float) -> None:
        """Take what came back; the last message was sent not before the last `send`."""
        if isinstance(answer, LeaseGrant):
            self._failures, self._grant, self.epoch = 0, answer, answer.epoch
            self.status, self.problem = LeaseStatus.HELD, None
            self._due_at = now + answer.renew_s * self._rng.uniform(0.9, 1.1)
            return
        self._failures += 1
        if answer.status in {404, 410}:
            had_lease, self._grant = self._grant is not None, None
            if had_lease:
                self._due_at = now  # the router lost it: register at once
                return
        self.status, self.problem = _meaning(answer), answer.code
        self._due_at = now + self._wait_s(answer)

    def _wait_s(self, refused: Refused) -> float:
        """Return how long to wait; a new credential may not have reached all of a router at once."""
        if refused.status == 401 and self._news_tries > 0:
            self._news_tries -= 1
            return _NEWS_S
        return next_wait_s(refused, self._failures, self._rng)


def _meaning(refused: Refused) -> LeaseStatus:
    if refused.status == 409:
        return LeaseStatus.SUPERSEDED
    if 400 <= refused.status < 500 and refused.status not in _MAY_PASS:
        return LeaseStatus.REFUSED
    return LeaseStatus.ROUTER_AWAY
