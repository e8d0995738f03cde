"""Keeps the agent's lease with its router, whatever becomes of either.

The router may be away, start anew or lose its registry: the agent goes on serving local clients,
tries again, and registers when it is told to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Protocol

import anyio
import httpx
from pydantic import BaseModel, Field, ValidationError

from local_agent.control.lease_core import Answer, Due, LeaseCore, LeaseStatus, Refused
from local_agent.control.trust import failure_code
from shared.contracts.agents import (
    AgentState,
    Capacity,
    Heartbeat,
    LeaseGrant,
    Power,
    Queue,
    Registration,
)
from shared.kit.clock import Clock, monotonic
from shared.kit.logs import get_logger

_LOOK_S = 2.0
_GOODBYE_S = 2.0
_ENDED = frozenset({LeaseStatus.RELEASED, LeaseStatus.SUPERSEDED})


class Subject(Protocol):
    """What the lease is about: the agent, as its heartbeats describe it."""

    def registration(self) -> Registration:
        """Return what to register."""
        ...

    def state(self) -> AgentState:
        """Return whether it takes work."""
        ...

    def queue(self) -> Queue:
        """Return its load."""
        ...

    def capacity(self) -> Capacity:
        """Return its memory for models."""
        ...

    def power(self) -> Power:
        """Return what its host runs on."""
        ...

    def reason(self) -> str | None:
        """Return why its host makes it drain, if it does."""
        ...

    async def changed(self) -> None:
        """Return when something happened that the router should hear at once."""
        ...


def message(due: Due, subject: Subject) -> Registration | Heartbeat:
    """Return what to send: the agent as it is now."""
    said, state, queue = subject.registration(), subject.state(), subject.queue()
    if due.lease_id is None:
        return said.model_copy(update={"seq": due.seq, "state": state, "queue": queue})
    return Heartbeat(
        lease_id=due.lease_id,
        incarnation=said.incarnation,
        seq=due.seq,
        state=state,
        queue=queue,
        capacity=subject.capacity(),
        models=said.models,
        catalog_hash=said.catalog_hash,
        power=subject.power(),
        reason=subject.reason(),
    )


class _Error(BaseModel):
    code: str = Field(pattern=r"^[a-z0-9_]{1,64}$")


class _Envelope(BaseModel):
    error: _Error


class LeaseClient:
    """Registers, renews and releases; `status` says how it stands."""

    def __init__(
        self,
        *,
        client: httpx.AsyncClient,
        agent_id: str,
        credential: Callable[[], str | None],
        subject: Subject,
        rng: Random,
        clock: Clock = monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Take what it needs.

        Args:
            client: an HTTP client whose base URL is the router's.
            agent_id: the agent's id.
            credential: reads the credential; asked again and again, so that one that is made or
                replaced later is found.
            subject: what heartbeats describe.
            rng: spreads heartbeats and tries over time.
            clock: a monotonic one.
            sleep: waits between tries.
        """
        self._client = client
        self._path = f"/internal/v1/agents/{agent_id}"
        self._credential = credential
        self._subject = subject
        self._core = LeaseCore(rng)
        self._clock = clock
        self._sleep = sleep
        # made by `run`: anyio makes scopes inside an event loop only
        self._scope: anyio.CancelScope | None = None
        self._talking = anyio.Lock()
        self._away: anyio.Event | None = None
        self._said = LeaseStatus.STARTING
        self._epoch = ""
        self._labels: dict[str, str] = {}
        self._log = get_logger("lease")

    @property
    def status(self) -> LeaseStatus:
        """Return how the agent stands with its router."""
        return self._core.status

    @property
    def problem(self) -> str | None:
        """Return what keeps the agent from its router, as a code, if anything does."""
        return self._core.problem

    async def run(self) -> None:
        """Hold the lease until it is released, or until a newer start of this agent took over."""
        if self.status is LeaseStatus.RELEASED and self._away is None:
            return
        with anyio.CancelScope() as self._scope:
            await self._hold()

    async def release(self) -> None:
        """Give the lease back; a router that does not answer finds out by itself."""
        if self._scope is not None:
            self._scope.cancel()  # one more heartbeat would take the agent in again
        with anyio.move_on_after(_GOODBYE_S, shield=True):
            await self._say_goodbye()
        self._core.status = LeaseStatus.RELEASED
        self._tell()

    async def leave(self) -> None:
        """See `Presence.leave`: the host goes to sleep."""
        if self._away is not None or self.status in _ENDED:
            return
        self._away = anyio.Event()
        with anyio.move_on_after(_GOODBYE_S):
            async with self._talking:  # what is on its way would take the agent in again
                await self._say_goodbye()
                self._core.status = LeaseStatus.RELEASED
                self._tell()

    def rejoin(self) -> None:
        """See `Presence.rejoin`."""
        away, self._away = self._away, None
        if away is not None:
            self._core.rejoin(self._clock())
            away.set()

    async def _say_goodbye(self) -> None:
        credential = self._credential()
        if self.status is not LeaseStatus.HELD or credential is None:
            return
        goodbye = {
            "incarnation": self._subject.registration().incarnation,
            "seq": self._core.next_seq(),
        }
        with suppress(httpx.HTTPError):
            await self._client.delete(
                f"{self._path}/lease", params=goodbye, headers=_headers(credential)
            )

    async def _hold(self) -> None:
        while self.status is not LeaseStatus.SUPERSEDED:
            if self._away is not None:
                await self._away.wait()
            credential = self._credential()
            wait_s = self._core.look(credential, self._clock())
            self._tell()
            if wait_s > 0:
                await self._wait(wait_s)
            elif credential is not None:
                await self._talk(credential)

    async def _talk(self, credential: str) -> None:
        async with self._talking:
            if self._away is not None:
                return
            self._meet_labels()
            due = self._core.send(self._clock())
            answer = await self._ask(due, credential)
            self._core.hear(answer, self._clock())
            self._tell(answer)

    def _meet_labels(self) -> None:
        """Register again where labels have changed: heartbeats do not tell them."""
        labels = self._subject.registration().labels
        if labels != self._labels:
            self._labels = labels
            self._core.introduce()

    async def _ask(self, due: Due, credential: str) -> Answer:
        path = self._path if due.lease_id is None else f"{self._path}/lease"
        body = message(due, self._subject).model_dump_json()
        try:
            response = await self._client.put(path, content=body, headers=_headers(credential))
            if response.status_code == 200:
                return LeaseGrant.model_validate_json(response.content)
        except httpx.HTTPError as error:
            return Refused(0, failure_code(error))
        except ValidationError:
            return Refused(0, "no_router_answers")
        return Refused(response.status_code, _code(response.content))

    async def _wait(self, wait_s: float) -> None:
        """Wait until a message may be due; no longer than until the next look at the credential."""
        step_s = min(wait_s, _LOOK_S)
        if self.status is not LeaseStatus.HELD:
            await self._sleep(step_s)
            return
        with anyio.move_on_after(step_s):
            await self._subject.changed()
            self._core.hasten(self._clock())

    def _tell(self, answer: Answer | None = None) -> None:
        """Log what has changed in how the agent stands."""
        if self._epoch and self._core.epoch not in {self._epoch, ""}:
            self._log.info("router_restarted")
        self._epoch = self._core.epoch
        if self.status is self._said:
            return
        self._said = self.status
        if isinstance(answer, Refused):
            self._log.warning(
                "lease", status=self._said.value, answer=answer.status, code=answer.code
            )
        else:
            self._log.info("lease", status=self._said.value)


def _headers(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}", "content-type": "application/json"}


def _code(body: bytes) -> str | None:
    """Return the code of an error, which names what is wrong without quoting anything."""
    try:
        return _Envelope.model_validate_json(body).error.code
    except ValidationError:
        return None
