"""Requests that wait for an agent, so that they can go on when it is lost.

An agent that froze, or whose machine fell asleep, closes nothing; nor is anything closed by one that was
taken off the registry, or by what is left of one that started anew. Without this, what waits for it
waits for as long as a long prompt may take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from router.domain import Endpoint, EndpointId
from router.fleet.deployments import agent_endpoint_id
from router.fleet.membership import Membership
from shared.http.cutoff import Cutoff

_Start = tuple[EndpointId, int | None]


class Waits:
    """Who waits for which start of which agent. Methods never await, so each is atomic."""

    def __init__(self, membership: Membership) -> None:
        """Begin with nobody; `membership` tells which agents are there."""
        self._membership = membership
        self._cuts: dict[_Start, set[Callable[[], None]]] = {}

    @contextmanager
    def on(
        self, endpoints: Iterable[Endpoint], *, while_none: Callable[[], bool] | None = None
    ) -> Iterator[None]:
        """Cut the block short, quietly, once an agent among the endpoints is lost.

        Args:
            endpoints: what the block waits for.
            while_none: asked then; if it says no, the block goes on.
        """
        with Cutoff() as cutoff:

            def cut() -> None:
                if while_none is None or while_none():
                    cutoff.cut()

            starts = {(each.id, each.incarnation) for each in endpoints if each.is_agent}
            for start in starts:
                self._cuts.setdefault(start, set()).add(cut)
            try:
                yield
            finally:
                for start in starts:
                    self._drop(start, cut)

    def has(self, endpoint: Endpoint) -> bool:
        """Tell whether an endpoint is still there; others than agents always are."""
        return not endpoint.is_agent or (endpoint.id, endpoint.incarnation) in self._present()

    def cut_lost(self) -> None:
        """Cut those who wait for an agent that is lost; to be called from time to time."""
        if not self._cuts:
            return
        for start in self._cuts.keys() - self._present():
            for cut in list(self._cuts[start]):
                cut()

    def _present(self) -> set[_Start]:
        return {
            (agent_endpoint_id(member.name), member.registration.incarnation)
            for member in self._membership
            if not self._membership.is_lost(member)
        }

    def _drop(self, start: _Start, cut: Callable[[], None]) -> None:
        cuts = self._cuts[start]
        cuts.discard(cut)
        if not cuts:
            del self._cuts[start]
