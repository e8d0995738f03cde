"""Who fell silent, and whose fault that is.

One agent that sends no heartbeats any more is lost. Where more than half of the fleet falls silent
within one TTL, the router itself is the likelier cause: it was stopped, slept or lost its network. Then
nobody is taken for lost by silence alone: for one TTL they stay suspect, and probes decide
(`local-agent.md`, "Registration and lease").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Silence:
    noticed_at: float
    spared_until: float
    probe_at: float


class Silences:
    """Judges each silence once, when it is first looked at; so a judgement costs O(1) as a rule."""

    def __init__(self, ttl_s: float) -> None:
        """Take how long a lease lasts."""
        self._ttl_s = ttl_s
        self._silences: dict[int, _Silence] = {}

    def is_spared(self, row_id: int, now: float, heard: Iterable[tuple[int, float]]) -> bool:
        """Tell whether an agent that is silent for 2 × TTL or longer is not to be taken for lost.

        Args:
            row_id: the agent.
            now: the time.
            heard: all agents that hold a lease: which, and when each was last heard.
        """
        found = self._silences.get(row_id)
        if found is None:
            until = now + self._ttl_s if self._is_own_fault(now, heard) else now
            found = self._silences[row_id] = _Silence(now, until, now)
        return now < found.spared_until

    def judge(self, row_id: int, now: float, *, is_there: bool) -> None:
        """Take what a probe found; it counts for one TTL."""
        found = self._silences.get(row_id)
        if found is not None:
            found.spared_until = now + self._ttl_s if is_there else now
            found.probe_at = now + self._ttl_s / 2

    def is_due(self, row_id: int, now: float) -> bool:
        """Tell whether a silent agent is to be probed (again)."""
        found = self._silences.get(row_id)
        return found is not None and now >= found.probe_at

    def end(self, row_id: int) -> None:
        """Forget an agent's silence: it was heard, or left."""
        self._silences.pop(row_id, None)

    def _is_own_fault(self, now: float, heard: Iterable[tuple[int, float]]) -> bool:
        """Tell whether more than half of those who were there lately are silent, or on the way to it."""
        there = silent = 0
        for row_id, heard_at in heard:
            found = self._silences.get(row_id)
            if found is not None and now - found.noticed_at >= self._ttl_s:
                continue  # lost for long
            there += 1
            silent += now - heard_at >= self._ttl_s
        return silent > 1 and 2 * silent > there
