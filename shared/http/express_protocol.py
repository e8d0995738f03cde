"""The protocol of connections whose requests may go by express: see `express`."""

from __future__ import annotations

import asyncio
from asyncio.events import TimerHandle
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from shared.http.asgi import BY_NAME
from shared.http.cycle import Cycle
from shared.http.express import ExpressCall, ExpressLane
from shared.http.known_head import KnownHead, without_length
from shared.http.protocol import GuardedProtocol

# A body that is not whole after this is read by a task, which has limits for that.
_BODY_S = 0.25


class ExpressProtocol(GuardedProtocol):
    """A guarded connection, whose plain requests are served without a task if the application has a `lane`."""

    max_express_bytes = 512 * 1024

    express: ExpressCall | None = None
    _lane: ExpressLane[Any] | None = None
    _unserved: Cycle | None = None
    _body_timer: TimerHandle | None = None
    _piece = b""
    _known: KnownHead | None = None
    _known_scope: Scope | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's
        """Start to wait for the first head."""
        super().connection_made(transport)
        self._lane = getattr(self.app, "lane", None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who is served that the client is gone."""
        super().connection_lost(exc)
        self._serve_unserved()
        if self.express is not None:
            self.express.client_gone()

    def data_received(self, data: bytes) -> None:
        """Serve a request whose head came before on this connection, or parse what came."""
        is_between = self._lane is not None and self._is_between
        if is_between and self._known is not None and self._serve_known(self._known, data):
            return
        self._piece = data if is_between else b""
        super().data_received(data)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        super().on_body(body)
        cycle = self._unserved
        if cycle is not None and cycle is self.cycle and len(cycle.body) <= self.max_express_bytes:
            self.flow.resume_reading()  # nobody takes pieces of it

    def begin(self, cycle: Cycle) -> None:
        """Serve a request; one that may go by express once its body is here."""
        scope: Scope = cycle.scope  # type: ignore[assignment] # with keys of ours
        lane = self._lane
        if lane is not None and not self.expect_100_continue and lane.takes(scope):
            self._unserved = cycle
        else:
            self.serve_by_task(cycle)

    def piece_parsed(self) -> None:
        """Serve a request whose body is here now; a body that takes its time is for a task."""
        cycle, lane = self._unserved, self._lane
        if cycle is None or lane is None:
            self._piece = b""
        elif self._is_over or not cycle.more_body or len(cycle.body) > self.max_express_bytes:
            self._serve_unserved()
        elif self._body_timer is None:
            self._body_timer = self.loop.call_later(_BODY_S, self._serve_unserved)
            if not lane.lets_in(cycle.scope):  # type: ignore[arg-type] # with keys of ours
                self._serve_unserved()

    def shutdown(self) -> None:
        """Finish what runs, and close."""
        self._serve_unserved()
        if self.express is not None:
            self.express.hand_over()
        super().shutdown()

    @property
    def _is_between(self) -> bool:
        """Tell whether the last request was answered, and nothing of a further one came."""
        cycle: RequestResponseCycle | None = self.cycle
        if self._is_over or self.transport.is_closing():
            return False
        if cycle is None:
            return not self._head_bytes
        return cycle.response_complete and not cycle.more_body and not self._is_in_head

    def _serve_known(self, known: KnownHead, data: bytes) -> bool:
        """Serve a request whose head came before on this connection; tell whether it is one."""
        body = known.body_of(data)
        if body is None or self._lane is None or self._known_scope is None:
            return False
        cycle = self._new_cycle({**self._known_scope}, keep_alive=True, expects_100=False)
        cycle.more_body = False
        cycle.body = body  # type: ignore[assignment] # nobody adds to it
        self.cycle = self._running = cycle
        if not self._lane.serve(self, cycle, known):
            self.serve_by_task(cycle)
        return True

    def _learn(self, cycle: Cycle, piece: bytes) -> KnownHead | None:
        """Return the head of a request that came as one piece, in the hope that it comes again."""
        by_name = cycle.scope[BY_NAME]  # type: ignore[literal-required] # a key of ours
        if not piece or not cycle.keep_alive or len(by_name) != len(self.headers):
            return None
        return KnownHead.of(piece)

    def _serve_unserved(self) -> None:
        cycle, self._unserved = self._unserved, None
        piece, self._piece = self._piece, b""
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        if cycle is None:
            return
        self._known = None
        is_whole = not cycle.more_body and not cycle.disconnected
        known = self._learn(cycle, piece) if is_whole else None
        # made now: what serves the request may leave in its scope what is this request's alone
        template = None if known is None else _template(cycle.scope)  # type: ignore[arg-type] # with keys of ours
        if not is_whole or self._lane is None or not self._lane.serve(self, cycle, known):
            self.serve_by_task(cycle)
        if known is not None and known.notes is not None:  # it was let in
            self._known, self._known_scope = known, template


def _template(scope: Scope) -> Scope:
    """Return the scope of a request with the same head, from one that nobody has seen yet."""
    headers = without_length(scope["headers"])
    return {**scope, "headers": headers, BY_NAME: dict(reversed(headers))}
