"""Who may be in memory: what is asked for, what is pinned, who goes for whom.

No I/O and no tasks: the supervisor tells what happens, calls `settle` before each plan, and does
what follows from it. Between `settle` and the plan nothing is awaited, so an idle worker that has
to go is still idle when it is stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from local_agent.catalog import Entry
from local_agent.domain import Deployment, ModelId, WorkerStatus
from local_agent.domain import WorkerState as S
from local_agent.lifecycle import ALIVE
from local_agent.memory.demand import Demands
from local_agent.memory.estimate import estimate_mb
from local_agent.memory.eviction import Resident, choose_evicted
from local_agent.memory.ledger import Ledger
from local_agent.memory.leftovers import Leftovers
from local_agent.memory.outlook import Outlook, Verdict
from local_agent.memory.remembered import Remembered
from local_agent.memory.room import Room
from local_agent.memory.use import RATE_TAU_S, Use
from shared.kit.clock import Clock

MIN_RESIDENCY_S = 10.0
"""How long a loaded model stays at least before it makes room for another one."""

SWAP_AFTER_S = 30.0
"""How long a model waits at most before one that is busy takes nothing new, to make room for it."""

_RELOAD_GUESS_S = 2.0
_RELOAD_GUESS_S_PER_GIB = 5.0
_RESTING = frozenset({S.COLD, S.UNAVAILABLE, S.PULLING})

Observed = Mapping[ModelId, WorkerStatus]


class Residency:
    """Decides which models are in memory."""

    def __init__(
        self,
        clock: Clock,
        ledger: Ledger,
        weights_bytes: Callable[[Deployment], int],
        *,
        min_residency_s: float = MIN_RESIDENCY_S,
        swap_after_s: float = SWAP_AFTER_S,
    ) -> None:
        """Start empty.

        Args:
            clock: the agent's monotonic clock.
            ledger: what is reserved; nobody else writes to it.
            weights_bytes: tells the size of a deployment's weights.
            min_residency_s: how long a loaded model stays at least.
            swap_after_s: how long busy models may keep another one waiting for their memory.
        """
        self.ledger = ledger
        self.room = Room(ledger)
        self.remembered = Remembered()
        self.leftovers = Leftovers(ledger)
        self.min_residency_s = min_residency_s
        self.swap_after_s = swap_after_s
        self._clock = clock
        self._weights_bytes = weights_bytes
        self._entries: Mapping[ModelId, Entry] = {}
        self._sizes: dict[ModelId, int] = {}
        self._wanted = Demands()
        self._granted: set[ModelId] = set()
        self._leaving: dict[ModelId, str] = {}
        self._uses: dict[ModelId, Use] = {}
        self._load_s: dict[ModelId, float] = {}
        self._is_waiting = False
        self._settled_at = -math.inf

    # -- what the supervisor tells ---------------------------------------------------------------

    def set_entries(self, entries: Mapping[ModelId, Entry]) -> None:
        """Take the known models; what is to be preloaded and was not so before is asked for."""
        for model, entry in entries.items():
            known = self._entries.get(model)
            was_preloaded = known is not None and known.deployment.preload
            if entry.deployment.preload and not was_preloaded:
                self._wanted.last(model, self._clock())
        self._entries = entries
        size = self._weights_bytes
        self._sizes = {model: size(entry.deployment) for model, entry in entries.items()}
        self._wanted.keep(entries)
        self.remembered.keep(entries)

    def ask(
        self, model: ModelId, request_id: str | None = None, *, is_standing: bool = True
    ) -> bool:
        """Say that the model should be loaded; tell whether that is news.

        `is_standing`: for a minute even if nobody waits for it.
        """
        return self._wanted.ask(model, self._clock(), request_id, is_standing=is_standing)

    def adopt(self, model: ModelId) -> bool:
        """Take a model that is in memory already; tell whether there is room. Its start has to follow."""
        is_held = self.ledger.reserve(model, self.size_mb(model))
        if is_held:
            self._wanted.last(model, self._clock())
        return is_held

    def asker(self, model: ModelId) -> str | None:
        """Return the request that a start is for, once: a later start is nobody's."""
        demand = self._wanted.get(model)
        if demand is None:
            return None
        request_id, demand.request_id = demand.request_id, None
        return request_id

    @contextmanager
    def waiting(self, model: ModelId) -> Iterator[None]:
        """Count one who waits for the load: the model is not taken away before that one knows."""
        use = self._use(model)
        use.waiters += 1
        try:
            yield
        finally:
            use.waiters -= 1

    def entered(self, model: ModelId) -> None:
        """Count a request."""
        use, now = self._use(model), self._clock()
        use.rate = use.faded(now) + 60 / RATE_TAU_S
        use.at = now

    def left(self, model: ModelId) -> bool:
        """Note the end of the last request; tell whether somebody may have waited for it."""
        self._use(model).idle_since = self._clock()
        entry = self._entries.get(model)
        return self._is_waiting or (entry is not None and entry.deployment.ttl_s is not None)

    def loaded(self, model: ModelId, load_s: float) -> None:
        """Note how long a load took."""
        self._load_s[model] = load_s

    def measured(self, model: ModelId, mb: int) -> None:
        """Note what a ready worker takes now: the next one is estimated by the most of it."""
        entry = self._entries.get(model)
        if entry is not None and mb > 0:
            self.remembered.saw(model, entry.deployment.config_hash, min(mb, self.ledger.peak_mb))
            if entry.deployment.memory_mb is None:  # else the configuration knows better
                self.ledger.grow(model, mb)

    def unload(self, model: ModelId, reason: str) -> None:
        """Take the model out of memory once its requests have finished."""
        self._wanted.drop(model)
        if model in self.ledger.held:
            self._leaving[model] = reason

    def pin(self, model: ModelId, *, is_pinned: bool) -> None:
        """Keep the model in memory once it is there, or no longer; until another command says so."""
        self.remembered.set_pin(model, is_pinned=is_pinned)

    # -- what follows ---------------------------------------------------------------------------

    def is_pinned(self, model: ModelId) -> bool:
        """Tell whether nothing but a command takes it out of memory."""
        told, entry = self.remembered.pin(model), self._entries.get(model)
        return entry is not None and entry.deployment.pin if told is None else told

    def is_wanted(self, model: ModelId, status: WorkerStatus) -> bool:
        """Tell whether the model should run: it is asked for, and has its memory."""
        if status.state in ALIVE:
            return model in self._wanted and model not in self._leaving
        return model in self._granted

    def load_s(self, model: ModelId) -> float:
        """Return how long a load of the model takes: the last one's time, else a guess by its size."""
        guess_s = _RELOAD_GUESS_S + _RELOAD_GUESS_S_PER_GIB * self._sizes.get(model, 0) / 2**30
        return self._load_s.get(model, guess_s)

    def waited_s(self, model: ModelId) -> float:
        """Return how long the model has waited for memory; 0 if nobody asks for it."""
        demand = self._wanted.get(model)
        return 0.0 if demand is None else self._clock() - demand.since

    def is_queued(self, model: ModelId) -> bool:
        """Tell whether the model waits for memory that others have."""
        return self._is_waiting and model in self._wanted and model not in self.ledger.held

    def why_leaving(self, model: ModelId) -> str | None:
        """Return why the model has to go; None if it need not."""
        return self._leaving.get(model)

    def settle(self, observed: Observed) -> None:
        """Give memory to whom it can be given, and send away who has to make room."""
        self._settled_at = now = self._clock()
        for model in list(self.ledger.held):
            if _state(observed, model) not in ALIVE:
                self.room.freed(self.leftovers.ended(model, self.room.machine.memory, now))
                self._wanted.restart(model, now)
        # who leaked holds nothing any more either, and may be loaded anew
        self._leaving = {one: why for one, why in self._leaving.items() if one in self.ledger.held}
        self._take_demands(observed, now)
        self._drop_old_demands(observed, now)
        self._end_idle(observed, now)
        self._granted, self._is_waiting = set(), False
        self.room.look_anew()
        for model in self._claims(observed, now):
            if self._reserve(model, observed):
                self._granted.add(model)
                self._wanted.last(model, now)
            elif self.refusal(model) is None:
                self._is_waiting = True
                if self._make_room(model, observed, now):
                    break  # whoever is smaller does not take what is being freed

    def next_due(self, observed: Observed) -> float | None:
        """Return when time alone will change what the last `settle` did; None if it won't."""
        times = [
            status.not_before
            for model, status in observed.items()
            if status.state is S.BACKOFF and model in self._wanted
        ]
        for model, status in observed.items():
            if status.state is S.READY and self._is_idle(model, status):
                times.append(self._idle_since(model, status) + self._ttl_s(model))
            if status.state is S.READY and self._is_waiting:
                times.append(status.since + self.min_residency_s)
        if self._is_waiting:
            waiting = (self._wanted.get(model) for model in self._wanted)
            times += [one.since + self.swap_after_s for one in waiting if one is not None]
        # not after now: what has come since then was not seen by that `settle`, and would be lost
        return min((at for at in times if self._settled_at < at < math.inf), default=None)

    def size_mb(self, model: ModelId) -> int:
        """Return what a worker of the model takes, as far as it is known."""
        deployment = self._entries[model].deployment
        peak = self.remembered.peak_mb(model, deployment.config_hash)
        return estimate_mb(deployment, self._sizes.get(model, 0), peak)

    def refusal(self, model: ModelId) -> Outlook | None:
        """Return why the model can't be loaded, whoever else goes or finishes; None if it can."""
        held = self.ledger.held
        if model in held:
            return None
        pinned = [one for one in held if self.is_pinned(one) and one not in self._leaving]
        if self.size_mb(model) + sum(held[one] for one in pinned) <= self.ledger.budget_mb:
            return None
        is_too_big = self.size_mb(model) > self.ledger.budget_mb
        in_the_way = () if is_too_big else tuple(self._pinned(one) for one in pinned)
        return self._outlook(model, Verdict.NEVER, in_the_way)

    def outlook(self, model: ModelId, observed: Observed) -> Outlook:
        """Return what a load of the model would do now; nothing is changed."""
        if model in self.ledger.held or self._entries[model].deployment.external_url is not None:
            return self._outlook(model, Verdict.LOADED, ())
        refused = self.refusal(model)
        if refused is not None:
            return refused
        need_mb = self._need_mb(model, observed)
        if self.size_mb(model) <= self.room.free_mb(observed):
            return self._outlook(model, Verdict.FITS, ())
        residents = self._residents(observed, self._clock())
        chosen = choose_evicted(need_mb, residents, min_residency_s=self.min_residency_s)
        verdict = Verdict.EVICTS if need_mb > 0 and chosen is not None else Verdict.WAITS
        if chosen is None:
            patient = [one for one in residents if not one.is_pinned and one.age_s is not None]
            chosen = choose_evicted(need_mb, patient, min_residency_s=0, may_be_busy=True) or ()
        would_go = tuple(one for one in residents if one.model in chosen)
        outlook = self._outlook(model, verdict, would_go)
        return replace(outlook, cause=self.room.cause(self.size_mb(model), observed))

    # -- inside ---------------------------------------------------------------------------------

    def _reserve(self, model: ModelId, observed: Observed) -> bool:
        """Hold the model's memory, if machine and ledger have it."""
        mb = self.size_mb(model)
        return self.room.may_take(model, mb, observed) and self.ledger.reserve(model, mb)

    def _use(self, model: ModelId) -> Use:
        return self._uses.setdefault(model, Use())

    def _claims(self, observed: Observed, now: float) -> list[ModelId]:
        """Return who asks for memory, in turn."""
        claims = [model for model in self._wanted if self._is_claim(model, observed, now)]
        priorities = {model: self._entries[model].deployment.priority for model in claims}
        return self._wanted.in_turn(claims, priorities, now, self.swap_after_s)

    def _is_claim(self, model: ModelId, observed: Observed, now: float) -> bool:
        entry = self._entries[model]
        if entry.problem is not None or entry.deployment.external_url is not None:
            return False
        status = observed.get(model, WorkerStatus())
        is_due = status.state is S.BACKOFF and now >= status.not_before
        return status.state in _RESTING or is_due

    def _take_demands(self, observed: Observed, now: float) -> None:
        """Ask for what somebody waits for, also if it was sent away meanwhile."""
        for model, status in observed.items():
            if status.waiting and model in self._entries:
                self._wanted.ask(model, now, is_standing=False)

    def _drop_old_demands(self, observed: Observed, now: float) -> None:
        """Forget who asked for a model that never got its memory, and has not come again."""
        for model in self._wanted:
            status = observed.get(model, WorkerStatus())
            is_waited_for = status.waiting or self._use(model).waiters or status.state in ALIVE
            if self._wanted.is_over(model, now) and not is_waited_for:
                self._wanted.drop(model)

    def _end_idle(self, observed: Observed, now: float) -> None:
        for model, status in observed.items():
            is_idle = status.state is S.READY and self._is_idle(model, status)
            if is_idle and now >= self._idle_since(model, status) + self._ttl_s(model):
                self.unload(model, f"it was idle for {self._ttl_s(model):.0f} s")

    def _is_idle(self, model: ModelId, status: WorkerStatus) -> bool:
        return not (status.in_flight or status.waiting or self._use(model).waiters)

    def _idle_since(self, model: ModelId, status: WorkerStatus) -> float:
        return max(status.since, self._use(model).idle_since)

    def _ttl_s(self, model: ModelId) -> float:
        entry = self._entries.get(model)
        ttl_s = None if entry is None else entry.deployment.ttl_s
        return math.inf if ttl_s is None or self.is_pinned(model) else ttl_s

    def _make_room(self, model: ModelId, observed: Observed, now: float) -> bool:
        """Send away idle ones; if they are too few, busy ones too, after their work and in due time.

        Requests of a loaded model go on being served for as long as nobody starves. Tell whether what
        is free belongs to the model already.
        """
        is_starving = self._wanted.is_starving(model, now, self.swap_after_s)
        need_mb = self._need_mb(model, observed)
        residents = self._residents(observed, now)
        rule = self.min_residency_s
        chosen = choose_evicted(need_mb, residents, min_residency_s=rule)
        if chosen is None and is_starving:
            chosen = choose_evicted(need_mb, residents, min_residency_s=rule, may_be_busy=True)
        for victim in chosen or ():
            self.unload(victim, f"it makes room for {model}")
        # what other programs have may never come back: nobody else waits for that
        return chosen is not None or (is_starving and self.size_mb(model) > self.ledger.free_mb)

    def _need_mb(self, model: ModelId, observed: Observed) -> int:
        """Return what has to be freed for the model, beyond what is coming free anyway."""
        coming_mb = sum(
            held
            for one, held in self.ledger.held.items()
            if one in self._leaving or _state(observed, one) in {S.DRAINING, S.STOPPING}
        )
        return self.size_mb(model) - self.room.spare_mb() - coming_mb

    def _residents(self, observed: Observed, now: float) -> list[Resident]:
        """Return who holds memory and is not going already."""
        found = []
        for model, held in self.ledger.held.items():
            status = observed.get(model, WorkerStatus())
            if model in self._leaving or status.state in {S.DRAINING, S.STOPPING}:
                continue
            # who has waited for the load hears of it at once
            is_there = status.state is S.READY and not self._use(model).waiters
            age_s = now - status.since if is_there else None
            found.append(self._resident(model, held, status, age_s))
        return found

    def _resident(
        self, model: ModelId, held_mb: int, status: WorkerStatus, age_s: float | None
    ) -> Resident:
        entry = self._entries.get(model)
        return Resident(
            model=model,
            memory_mb=held_mb,
            age_s=age_s,
            is_busy=status.in_flight > 0 or status.waiting > 0,
            is_pinned=self.is_pinned(model),
            reload_s=self.load_s(model),
            recent_rate=self._use(model).faded(self._clock()),
            weight=1.0 if entry is None else entry.deployment.weight,
        )

    def _pinned(self, model: ModelId) -> Resident:
        return self._resident(model, self.ledger.held[model], WorkerStatus(), None)

    def _outlook(self, model: ModelId, verdict: Verdict, would_go: tuple[Resident, ...]) -> Outlook:
        return Outlook(
            model=model,
            verdict=verdict,
            needs_mb=self.size_mb(model),
            free_mb=self.ledger.free_mb,
            budget_mb=self.ledger.budget_mb,
            would_go=would_go,
        )


def _state(observed: Observed, model: ModelId) -> S:
    return observed.get(model, WorkerStatus()).state
