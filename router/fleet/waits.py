"""Requests that wait for an agent's first byte, so that they can go on when it is lost.

An agent that froze, or whose machine fell asleep, closes nothing: without this, what it was sent waits
for as long as a long prompt may take.
"""

from __future__ import annotations

from collections.abc import Callable

from router.domain import EndpointId
from router.fleet.deployments import agent_endpoint_id
from router.fleet.membership import Membership


class Waits:
    """Who waits for which agent. Methods never await, so each is atomic."""

    def __init__(self, membership: Membership) -> None:
        """Begin with nobody; `membership` tells which agents are lost."""
        self._membership = membership
        self._cuts: dict[EndpointId, set[Callable[[], None]]] = {}

    def add(self, endpoint: EndpointId, cut: Callable[[], None]) -> None:
        """Have `cut` called if this agent is lost before `drop`."""
        self._cuts.setdefault(endpoint, set()).add(cut)

    def drop(self, endpoint: EndpointId, cut: Callable[[], None]) -> None:
        """Wait no more."""
        cuts = self._cuts[endpoint]
        cuts.discard(cut)
        if not cuts:
            del self._cuts[endpoint]

    def cut_lost(self) -> None:
        """Cut those who wait for an agent that fell silent; to be called from time to time."""
        if not self._cuts:
            return
        for member in self._membership:
            cuts = self._cuts.get(agent_endpoint_id(member.name))
            if cuts and self._membership.is_lost(member):
                for cut in list(cuts):
                    cut()
