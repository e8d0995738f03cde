"""The agent's calls that need no task: see `shared.http.express`."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import Scope

from local_agent.api.proxy import BegunCall, Head, InferenceRoutes
from shared.http.errors import UpstreamFailed
from shared.http.exchange import Reply
from shared.http.express import ExpressCall, ExpressLane
from shared.http.guard import Guard, RequestContext
from shared.http.lean_transport import LeanTransport
from shared.http.origin import OriginRules
from shared.http.transport import Transport
from shared.kit.clock import Clock


class AgentLane(ExpressLane[Head]):
    """Sends plain calls to workers that have a slot."""

    def __init__(self, guard: Guard, routes: InferenceRoutes, transport: LeanTransport) -> None:
        """Take what `routes` pass on, and send it by `transport`."""
        super().__init__(guard, routes.passed, max_body_bytes=routes.max_body_bytes)
        self._routes = routes
        self._transport = transport

    def head_of(self, scope: Scope) -> Head:
        """See `ExpressLane.head_of`."""
        return self._routes.head_of(scope)

    def begin(
        self, scope: Scope, context: RequestContext, body: bytes, head: Head
    ) -> ExpressCall | None:
        """See `ExpressLane.begin`."""
        begun = self._routes.begin_now(head, context, body)
        if begun is None:
            return None
        made = _AgentCall(self, context, begun)
        try:
            made.exchange = self._transport.send_now(begun.request)
        except UpstreamFailed:
            pass  # the task raises it again
        except Exception as defect:  # noqa: BLE001 - a slot is taken: the task gives it back
            made.defect = defect
        return made


class _AgentCall(ExpressCall):
    __slots__ = ("begun",)

    def __init__(self, lane: AgentLane, context: RequestContext, begun: BegunCall) -> None:
        super().__init__(lane, context, None)
        self.begun = begun

    def answer_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """See `ExpressCall.answer_headers`."""
        return ()

    def end(self, reply: Reply | None, error: BaseException | None) -> None:
        """See `ExpressCall.end`."""
        self.begun.give_back()


def guarded(
    routes: InferenceRoutes, transport: Transport, *, rules: OriginRules, clock: Clock
) -> Guard:
    """Return the agent's outermost layer, with a lane if its transport has one."""
    guard = Guard(routes, rules=rules, clock=clock, origin="agent")
    if isinstance(transport, LeanTransport):
        guard.lane = AgentLane(guard, routes, transport)
    return guard
