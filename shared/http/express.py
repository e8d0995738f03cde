"""Calls that are served in callbacks of the event loop, without a task: the cheapest way for the plainest case.

A call goes by express if its whole body is here, its upstream has a connection that is kept, and its answer
comes whole, as a success, within a moment. Whatever is otherwise, at any point before the answer is sent, is
handed over to a task, which goes on from where the call is. So nothing that may go wrong is dealt with
here. Why: docs/decisions/0012-express-calls.md.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from starlette.types import Scope

from shared.http.asgi import BY_NAME
from shared.http.cycle import Cycle
from shared.http.errors import ApiError
from shared.http.exchange import Reply, answered, is_event_stream
from shared.http.guard import CONTEXT, Guard, RequestContext
from shared.http.headers import pass_on
from shared.http.known_head import KnownHead
from shared.http.lean_kept import KeptConnection
from shared.http.lean_transport import LeanExchange
from shared.kit.logs import get_logger, places

BEGUN = "iir.begun"
"""The key of a scope under which a call is kept that was handed over (`ExpressCall`)."""
# A call is handed over after one to two of these: until then nobody looks at its limits of time, nor at
# whether its agent is still there.
_HELD_S = 0.25


class Forwarded(Exception):
    """The task gets what was read of the body, and not the body."""


class ClientConnection(Protocol):
    """A client's connection; `express` is told when the client goes away, or the server stops."""

    express: ExpressCall | None

    def serve_by_task(self, cycle: Cycle) -> None:
        """Have the application serve the request."""
        ...


HeadT = TypeVar("HeadT")


class ExpressLane(ABC, Generic[HeadT]):
    """Takes the calls of one service that may go by express."""

    def __init__(
        self,
        guard: Guard,
        paths: Iterable[str],
        *,
        max_body_bytes: int,
        deadline_s: float = math.inf,
    ) -> None:
        """Take POST requests to `paths` that `guard` lets in.

        Args:
            guard: the service's.
            paths: what may go by express.
            max_body_bytes: a larger body is refused elsewhere.
            deadline_s: the limit of a call, if it has one; it is handed over long before.
        """
        self.guard = guard
        self.log = get_logger("express")
        self._paths = frozenset(paths)
        self._max_body_bytes = max_body_bytes
        self._held_s = min(_HELD_S, deadline_s / 8)
        self._held: dict[ExpressCall, int] = {}
        self._turn = 0
        self._timer: asyncio.TimerHandle | None = None
        self.further: Sequence[tuple[bytes, bytes]] = ()
        """Headers of every answer, which a layer in front of the guard would add."""

    def takes(self, scope: Scope) -> bool:
        """Tell whether a request may go by express, as far as its head says: a page's has more rules."""
        by_name = scope[BY_NAME]
        if scope["method"] != "POST" or scope["path"] not in self._paths:
            return False
        if b"content-encoding" in by_name or b"origin" in by_name:
            return False
        length = by_name.get(b"content-length", b"0")
        return len(length) <= 9 and int(length) <= self._max_body_bytes

    def lets_in(self, scope: Scope) -> bool:
        """Tell whether the sender of a head may send the body as well; who may not need not wait to hear so."""
        try:
            self.guard.admit(scope)
            self.head_of(scope)
        except ApiError:
            return False
        return True

    def serve(self, client: ClientConnection, cycle: Cycle, known: KnownHead | None) -> bool:
        """Serve a request whose body is here whole; False: it is not for here, and nothing was done.

        Args:
            client: the client's connection.
            cycle: the request.
            known: its head if that may come again; `notes` are what `head_of` made of it before.
        """
        scope: Scope = cycle.scope  # type: ignore[assignment] # with keys of ours
        if len(cycle.body) > self._max_body_bytes or cycle.flow.write_paused:
            return False
        try:
            context, head = self._admitted(scope, known)
            call = self.begin(scope, context, bytes(cycle.body), head)
        except Forwarded:
            cycle.body = bytearray()
            return False
        except Exception:  # noqa: BLE001 - the task finds the same, and has words for it
            return False
        if call is None:
            return False
        cycle.body = bytearray()
        call.start(client, cycle)
        return True

    def _admitted(self, scope: Scope, known: KnownHead | None) -> tuple[RequestContext, HeadT]:
        """Return the context of a request, and what its head says, as it is or as it was found before."""
        notes = None if known is None else known.notes
        context = self.guard.admit(scope) if notes is None else self.guard.context(scope)
        if notes is not None and self.holds(notes):
            return context, notes
        head = self.head_of(scope)
        if known is not None:
            known.notes = head
        return context, head

    @abstractmethod
    def head_of(self, scope: Scope) -> HeadT:
        """Return what the head of a request says.

        Raises:
            ApiError: it is refused.
        """

    def holds(self, head: HeadT) -> bool:
        """Tell whether a head still means what `head_of` made of it."""
        return True

    @abstractmethod
    def begin(
        self, scope: Scope, context: RequestContext, body: bytes, head: HeadT
    ) -> ExpressCall | None:
        """Return a call that is on its way; None if it can't go by express, and nothing was done.

        Raises:
            ApiError: likewise.
            Forwarded: likewise, and the task finds in the scope what it needs of the body.
        """

    def note(self, call: ExpressCall, cycle: Cycle, status: int | None) -> None:
        """Write a call's line, now that it is over."""
        scope: Scope = cycle.scope  # type: ignore[assignment] # with keys of ours
        self.guard.note(scope, call.context, status)

    def hold(self, call: ExpressCall) -> None:
        """Hand a call over unless it is let go within a moment."""
        self._held[call] = self._turn
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._held_s, self._look)

    def let_go(self, call: ExpressCall) -> None:
        """Hold a call no more."""
        self._held.pop(call, None)

    def _look(self) -> None:
        self._turn += 1
        self._timer = None
        late = [call for call, turn in self._held.items() if turn + 1 < self._turn]
        if len(late) < len(self._held):
            again = asyncio.get_running_loop().call_later
            self._timer = again(self._held_s, self._look)
        for call in late:
            call.hand_over()


class ExpressCall(ABC):
    """One call on its way, until it is answered, handed over, or its client is gone.

    `exchange` is its request to the upstream; None if nothing was sent, and it has to be handed over.
    """

    __slots__ = ("_client", "_cycle", "_is_ended", "_lane", "context", "defect", "exchange")

    def __init__(
        self, lane: ExpressLane[Any], context: RequestContext, exchange: LeanExchange | None
    ) -> None:
        self._lane = lane
        self.context = context
        self.exchange = exchange
        self.defect: Exception | None = None
        self._is_ended = False
        self._client: ClientConnection
        self._cycle: Cycle

    @abstractmethod
    def answer_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Return what the answer's head says besides the upstream's headers."""

    @abstractmethod
    def end(self, reply: Reply | None, error: BaseException | None) -> None:
        """Record how it ended: with its reply, or what came instead; `CancelledError`: the client is gone."""

    def start(self, client: ClientConnection, cycle: Cycle) -> None:
        """Wait for the upstream's answer on behalf of `client`."""
        self._client, self._cycle = client, cycle
        exchange = self.exchange
        if exchange is None:
            self.hand_over()
            return
        client.express = self
        exchange.connection.listener = self._look
        self._lane.hold(self)

    def hand_over(self) -> None:
        """Let a task go on from here."""
        self._detach()
        if self.defect is not None:
            self._abort()  # nobody looks for an answer any more
        client, cycle = self._client, self._cycle
        # they would lead in a circle, and hold what came until it is found
        del self._client, self._cycle
        scope: Scope = cycle.scope  # type: ignore[assignment] # with keys of ours
        scope[CONTEXT] = self.context
        scope[BEGUN] = self
        client.serve_by_task(cycle)

    def client_gone(self) -> None:
        """Give everything up."""
        self._detach()
        self._abort()
        self.context.notes["outcome"] = "abandoned"
        self._end(None, asyncio.CancelledError())

    def _detach(self) -> None:
        self._client.express = None
        self._lane.let_go(self)
        if self.exchange is not None:
            self.exchange.connection.listener = None

    def _look(self) -> None:
        """See what came from the upstream."""
        assert self.exchange is not None  # noqa: S101 - it listens to it
        connection = self.exchange.connection
        if connection.error is None and not connection.is_complete and not connection.is_full:
            return
        try:
            is_answered = (
                connection.error is None and connection.is_complete and self._answer(connection)
            )
        except Exception as defect:  # noqa: BLE001 - it would end the upstream's connection
            is_answered = self._has_failed(defect)
        if not is_answered:
            self.hand_over()

    def _has_failed(self, defect: Exception) -> bool:
        """Note a defect of ours; tell whether nothing is left to do for the client."""
        cycle = self._cycle
        if not cycle.response_started:
            self.defect = defect  # the task raises it
            return False
        self._lane.log.error("internal_error", kind=type(defect).__name__, trace=places(defect))
        if not cycle.response_complete:
            cycle.transport.close()  # it got a part of its answer, or nothing
        self._detach()
        if not self._is_ended:
            self._abort()
            self._end(None, defect)
        return True

    def _abort(self) -> None:
        if self.exchange is not None:
            self.exchange.connection.abort()

    def _end(self, reply: Reply | None, error: BaseException | None = None) -> None:
        """Record how it ended, and write its line."""
        self._is_ended = True
        cycle = self._cycle
        try:
            self.end(reply, error)
        finally:
            status = reply.status if reply is not None else None
            self._lane.note(self, cycle, status)

    def _answer(self, connection: KeptConnection) -> bool:
        """Answer the client, if it is plain that this is an answer; tell whether it was."""
        status, headers, cycle = connection.status, connection.headers, self._cycle
        is_plain = 200 <= status < 300 and connection.encoding is None
        if not is_plain or cycle.flow.write_paused:
            return False
        known = connection.known
        passed = None if known is None else known.notes
        if not isinstance(passed, list):
            if is_event_stream(headers):
                return False
            passed = pass_on(headers)
            if known is not None:
                known.notes = passed
        body = connection.peek()
        try:
            reply = answered(status, passed, body)
        except ApiError:
            return False
        context = self.context
        request_id = context.request_id.encode()
        sent = [
            *reply.headers,
            *self.answer_headers(),
            *self._lane.further,
            (b"x-request-id", request_id),
        ]
        if context.id_header is not None:
            sent.append((context.id_header, request_id))
        cycle.respond(status, sent, body)
        self._detach()
        assert self.exchange is not None  # noqa: S101 - the answer came by it
        self.exchange.release()
        self._end(reply)
        return True
