"""When to stop sending to something that fails: a pure state machine, and a table of them.

Closed: traffic flows. Open: none does, for a time that doubles with each failed trial. Half-open:
that time is over, and one trial at a time may show that it is well again.

A model's failures open the breaker of that deployment only; failures to connect open the
endpoint's. So one bad model never takes its siblings down.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from shared.kit.clock import Clock


class Fault(str, Enum):
    """What an attempt's end says about where it was sent."""

    NONE = "none"
    MODEL = "model"
    ENDPOINT = "endpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRule:
    """Opens after `failures` in a row; stays open `first_s`, doubled per failed trial to `most_s`.

    A trial that reports nothing within `trial_s` no longer keeps others out.
    """

    failures: int = 3
    first_s: float = 2.0
    most_s: float = 60.0
    trial_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """The state of one breaker. Times are seconds of a monotonic clock.

    `open_until` is None while it is closed; `trial_since` is when the present trial began.
    """

    failures: int = 0
    openings: int = 0
    open_until: float | None = None
    trial_since: float | None = None


def allows(breaker: Breaker, now: float, rule: BreakerRule) -> bool:
    """Tell whether a request may be sent now."""
    if breaker.open_until is None:
        return True
    if now < breaker.open_until:
        return False
    return breaker.trial_since is None or now >= breaker.trial_since + rule.trial_s


def begin(breaker: Breaker, now: float) -> Breaker:
    """Return the breaker after a request was sent; one that is half-open has its trial with it."""
    return breaker if breaker.open_until is None else replace(breaker, trial_since=now)


def fail(breaker: Breaker, now: float, rule: BreakerRule) -> Breaker:
    """Return the breaker after a failure."""
    if breaker.open_until is not None and breaker.trial_since is None:
        return breaker  # sent before it opened: old news
    failures = breaker.failures + 1
    if breaker.open_until is None and failures < rule.failures:
        return replace(breaker, failures=failures)
    wait_s = min(rule.first_s * 2 ** min(breaker.openings, 30), rule.most_s)
    return Breaker(failures=failures, openings=breaker.openings + 1, open_until=now + wait_s)


def relent(breaker: Breaker) -> Breaker:
    """Return the breaker after a request that told nothing: its trial is over, and open to others."""
    return replace(breaker, trial_since=None)


Key = tuple[str, ...]

# Prefix rules let clients name any model, so there may be any number of them.
_MOST = 4096


class Breakers:
    """One breaker per deployment and one per endpoint; those that are closed cost nothing.

    Methods never await, so each is atomic on the loop.
    """

    def __init__(self, clock: Clock, rule: BreakerRule | None = None) -> None:
        """Time with `clock`, a monotonic one."""
        self._clock = clock
        self._rule = rule or BreakerRule()
        self._breakers: dict[Key, Breaker] = {}

    def __len__(self) -> int:
        """Return how many are not plainly closed."""
        return len(self._breakers)

    def wait_s(self, endpoint: str, model: str) -> float | None:
        """Return for how long nothing may be sent there; None if something may, now."""
        if not self._breakers:
            return None
        now = self._clock()
        waits = [
            max((breaker.open_until or now) - now, 0.0)
            for breaker in self._of(endpoint, model)
            if not allows(breaker, now, self._rule)
        ]
        return max(waits) if waits else None

    def begin(self, endpoint: str, model: str) -> None:
        """Note that a request was sent."""
        if self._breakers:
            now = self._clock()
            for key in _keys(endpoint, model):
                if key in self._breakers:
                    self._breakers[key] = begin(self._breakers[key], now)

    def end(self, endpoint: str, model: str, fault: Fault | None) -> None:
        """Note how it ended; None: it told nothing (the client left before an answer)."""
        if fault is None or fault is Fault.NONE:
            if self._breakers:
                self._absolve(endpoint, model, is_proof=fault is Fault.NONE)
            return
        blamed: Key = (endpoint,) if fault is Fault.ENDPOINT else (endpoint, model)
        if len(self._breakers) >= _MOST and blamed not in self._breakers:
            self._make_room()
        now = self._clock()
        self._breakers[blamed] = fail(self._breakers.get(blamed, Breaker()), now, self._rule)
        if fault is Fault.MODEL:
            self._breakers.pop((endpoint,), None)  # it answered, so it can be reached
        elif (endpoint, model) in self._breakers:  # of the model this told nothing
            self._breakers[endpoint, model] = relent(self._breakers[endpoint, model])

    def answered(self, endpoint: str, model: str) -> None:
        """Note that a trial got its first byte: others may follow, until one fails again."""
        for key in _keys(endpoint, model) if self._breakers else ():
            breaker = self._breakers.get(key)
            if breaker is not None and breaker.trial_since is not None:
                self._breakers[key] = Breaker(
                    failures=self._rule.failures - 1, openings=breaker.openings
                )

    def is_spared(self, endpoint: str) -> bool:
        """Tell whether the endpoint itself, not one of its models, gets no requests now."""
        breaker = self._breakers.get((endpoint,))
        return breaker is not None and breaker.open_until is not None

    def miss(self, endpoint: str) -> None:
        """Note that a probe got no answer, or one that says it is not well.

        However often it is asked, that never prolongs an open breaker; once its time is over, a probe
        is as good a trial as a request.
        """
        now = self._clock()
        breaker = self._breakers.get((endpoint,), Breaker())
        if breaker.open_until is not None:
            if now < breaker.open_until:
                return
            breaker = begin(breaker, now)
        self._breakers[endpoint,] = fail(breaker, now, self._rule)

    def answer(self, endpoint: str) -> None:
        """Note that a probe got one: the endpoint can be reached; of its models it tells nothing."""
        self._breakers.pop((endpoint,), None)

    def forget(self, endpoint: str) -> None:
        """Drop what is held against an endpoint and its models: it began anew."""
        for key in [key for key in self._breakers if key[0] == endpoint]:
            del self._breakers[key]

    def _absolve(self, endpoint: str, model: str, *, is_proof: bool) -> None:
        for key in _keys(endpoint, model):
            breaker = self._breakers.get(key)
            if breaker is None:
                continue
            if is_proof:
                del self._breakers[key]
            else:
                self._breakers[key] = relent(breaker)

    def _make_room(self) -> None:
        """Drop the oldest that is closed, or the oldest: what fails goes on to fail, and comes back."""
        closed = (key for key, breaker in self._breakers.items() if breaker.open_until is None)
        del self._breakers[next(closed, next(iter(self._breakers)))]

    def _of(self, endpoint: str, model: str) -> Iterable[Breaker]:
        found = (self._breakers.get(key) for key in _keys(endpoint, model))
        return (breaker for breaker in found if breaker is not None)


def _keys(endpoint: str, model: str) -> tuple[Key, Key]:
    return (endpoint,), (endpoint, model)
