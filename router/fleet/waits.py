"""Requests that wait for an agent, so that they can go on when it is lost.

An agent that froze, or whose machine fell asleep, closes nothing; nor is anything closed by one that was
taken off the registry, or by what is left of one that started anew. Without this, what waits for it
waits for as long as a long prompt may take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType

from router.domain import Endpoint, EndpointId
from router.fleet.deployments import agent_endpoint_id, agent_name
from router.fleet.membership import Membership
from shared.http.cutoff import Cutoff

_Start = tuple[EndpointId, int | None]


class Waits:
    """Who waits for which start of which agent. Methods never await, so each is atomic."""

    def __init__(self, membership: Membership) -> None:
        """Begin with nobody; `membership` tells which agents are there."""
        self._membership = membership
        self._waiting: dict[_Start, set[_Wait]] = {}

    def on(
        self, endpoints: Iterable[Endpoint], *, while_none: Callable[[], bool] | None = None
    ) -> Cutoff:
        """Return a block that is cut short, quietly, once an agent among the endpoints is lost.

        Args:
            endpoints: what the block waits for.
            while_none: asked then; if it says no, the block goes on.
        """
        return _Wait(self._waiting, endpoints, while_none)

    def has(self, endpoint: Endpoint) -> bool:
        """Tell whether an endpoint is still there; others than agents always are."""
        if not endpoint.is_agent:
            return True
        member = self._membership.named(agent_name(endpoint.id))
        return (
            member is not None
            and member.registration.incarnation == endpoint.incarnation
            and not self._membership.is_lost(member)
        )

    def cut_lost(self) -> None:
        """Cut those who wait for an agent that is lost; to be called from time to time."""
        if not self._waiting:
            return
        present = {
            (agent_endpoint_id(member.name), member.registration.incarnation)
            for member in self._membership
            if not self._membership.is_lost(member)
        }
        for start in self._waiting.keys() - present:
            for wait in list(self._waiting[start]):
                wait.cut()


class _Wait(Cutoff):
    """One block, listed under all that it waits for as long as it is open."""

    __slots__ = ("_starts", "_waiting", "_while_none")

    def __init__(
        self,
        waiting: dict[_Start, set[_Wait]],
        endpoints: Iterable[Endpoint],
        while_none: Callable[[], bool] | None,
    ) -> None:
        super().__init__()
        self._waiting = waiting
        self._starts = {(each.id, each.incarnation) for each in endpoints if each.is_agent}
        self._while_none = while_none

    def __enter__(self) -> _Wait:  # noqa: PYI034 - typing has no Self before Python 3.11
        super().__enter__()
        for start in self._starts:
            self._waiting.setdefault(start, set()).add(self)
        return self

    def cut(self) -> None:
        if self._while_none is None or self._while_none():
            super().cut()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        for start in self._starts:
            waiting = self._waiting[start]
            waiting.discard(self)
            if not waiting:
                del self._waiting[start]
        return super().__exit__(kind, error, trace)
