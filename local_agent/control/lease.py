"""Keeps the agent's lease with its router, whatever becomes of either.

The router may be away, start anew or lose its registry: the agent goes on serving local clients,
tries again, and registers when it is told to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Protocol

import anyio
import httpx
from pydantic import BaseModel, Field, ValidationError

from shared.contracts.agents import (
    AgentModel,
    AgentState,
    Heartbeat,
    LeaseGrant,
    Queue,
    Registration,
)
from shared.kit.backoff import backoff_s
from shared.kit.logs import get_logger

_CREDENTIAL_WAIT_S = 60.0
_LOOK_S = 2.0
_GOODBYE_S = 2.0
_NO_CREDENTIAL = -1
_NEWS_TRIES = 5
_NEWS_S = 1.0
# these of the 4xx say "not now", not "not you"
_MAY_PASS = frozenset({404, 408, 410, 425, 429})


class LeaseStatus(str, Enum):
    """How the agent stands with its router."""

    STARTING = "starting"
    HELD = "held"
    ROUTER_AWAY = "router_away"
    NO_CREDENTIAL = "no_credential"
    REFUSED = "refused"
    SUPERSEDED = "superseded"
    RELEASED = "released"


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

    def models(self) -> tuple[AgentModel, ...]:
        """Return its models."""
        ...

    async def changed(self) -> None:
        """Return when something happened that the router should hear at once."""
        ...


@dataclass(frozen=True, slots=True)
class Refused:
    """What came in place of a grant.

    `status` is the answer's; 0 where there was none, -1 where nothing was asked for want of a
    credential. `code` is the error's.
    """

    status: int
    code: str | None = None


Answer = LeaseGrant | Refused


class _Error(BaseModel):
    code: str = Field(pattern=r"^[a-z0-9_]{1,64}$")


class _Envelope(BaseModel):
    error: _Error


def next_wait_s(refused: Refused, failures: int, rng: Random) -> float:
    """Return how long to wait after a refusal: the router's absence is met with short backoff."""
    if refused.status in {401, 403, _NO_CREDENTIAL}:
        return _CREDENTIAL_WAIT_S
    return backoff_s(failures, rng, first_s=0.5, most_s=5.0)


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
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        """Take what it needs.

        Args:
            client: an HTTP client whose base URL is the router's.
            agent_id: the agent's id.
            credential: reads the credential; asked before each message, so that one that is made
                or replaced later is found.
            subject: what heartbeats describe.
            rng: spreads heartbeats and tries over time.
            sleep: waits between tries.
        """
        self._client = client
        self._path = f"/internal/v1/agents/{agent_id}"
        self._credential = credential
        self._subject = subject
        self._rng = rng
        self._sleep = sleep
        self._seq = 0
        self._news_tries = 0
        self._labels: dict[str, str] = {}
        # made by `run`: anyio makes scopes inside an event loop only
        self._scope: anyio.CancelScope | None = None
        self._log = get_logger("lease")
        self.status = LeaseStatus.STARTING

    async def run(self) -> None:
        """Hold the lease until it is released, or until a newer start of this agent took over."""
        if self.status is LeaseStatus.RELEASED:
            return
        with anyio.CancelScope() as self._scope:
            await self._hold()

    async def release(self) -> None:
        """Give the lease back; a router that does not answer finds out by itself."""
        if self._scope is not None:
            self._scope.cancel()  # one more heartbeat would take the agent in again
        credential = self._credential()
        if self.status is LeaseStatus.HELD and credential is not None:
            with anyio.move_on_after(_GOODBYE_S, shield=True), suppress(httpx.HTTPError):
                await self._client.delete(f"{self._path}/lease", headers=_headers(credential))
        self._become(LeaseStatus.RELEASED)

    async def _hold(self) -> None:
        failures = 0
        grant: LeaseGrant | None = None
        known = self._credential()
        while True:
            credential = self._credential()
            if credential != known:
                known, failures = credential, 0
                self._news_tries = _NEWS_TRIES
            answer = await self._ask(grant, credential)
            if isinstance(answer, LeaseGrant):
                failures, grant = 0, answer
                self._become(LeaseStatus.HELD)
                await self._until_due(answer)
                continue
            failures += 1
            if answer.status in {404, 410}:
                had_lease, grant = grant is not None, None
                if had_lease:
                    continue  # the router lost it: register at once
            self._become(_meaning(answer), answer)
            if self.status is LeaseStatus.SUPERSEDED:
                return
            await self._wait(self._wait_s(answer, failures), credential)

    def _wait_s(self, refused: Refused, failures: int) -> float:
        """Return how long to wait; a new credential may not have reached all of a router at once."""
        if refused.status == 401 and self._news_tries > 0:
            self._news_tries -= 1
            return _NEWS_S
        return next_wait_s(refused, failures, self._rng)

    async def _ask(self, grant: LeaseGrant | None, credential: str | None) -> Answer:
        if credential is None:
            return Refused(_NO_CREDENTIAL)
        registration = self._subject.registration()
        if grant is not None and registration.labels == self._labels:
            return await self._renew(grant, credential)
        answer = await self._put(self._path, registration.model_dump_json(), credential)
        if isinstance(answer, LeaseGrant):
            self._labels = registration.labels
        return answer

    async def _renew(self, grant: LeaseGrant, credential: str) -> Answer:
        self._seq += 1
        heartbeat = Heartbeat(
            lease_id=grant.lease_id,
            incarnation=self._subject.registration().incarnation,
            seq=self._seq,
            state=self._subject.state(),
            queue=self._subject.queue(),
            models=self._subject.models(),
        )
        return await self._put(f"{self._path}/lease", heartbeat.model_dump_json(), credential)

    async def _put(self, path: str, body: str, credential: str) -> Answer:
        try:
            response = await self._client.put(path, content=body, headers=_headers(credential))
            if response.status_code == 200:
                return LeaseGrant.model_validate_json(response.content)
        except (httpx.HTTPError, ValidationError):
            return Refused(0)
        return Refused(response.status_code, _code(response.content))

    async def _until_due(self, grant: LeaseGrant) -> None:
        with anyio.move_on_after(grant.renew_s * self._rng.uniform(0.9, 1.1)):
            await self._subject.changed()

    async def _wait(self, wait_s: float, credential: str | None) -> None:
        """Wait before the next try; no longer than until the credential has changed."""
        while wait_s > 0 and self._credential() == credential:
            step_s = min(wait_s, _LOOK_S)
            await self._sleep(step_s)
            wait_s -= step_s

    def _become(self, status: LeaseStatus, refused: Refused | None = None) -> None:
        if status is self.status:
            return
        self.status = status
        if refused is not None and refused.status > 0:
            self._log.warning(
                "lease", status=status.value, answer=refused.status, code=refused.code
            )
        else:
            self._log.info("lease", status=status.value)


def _meaning(refused: Refused) -> LeaseStatus:
    if refused.status == _NO_CREDENTIAL:
        return LeaseStatus.NO_CREDENTIAL
    if refused.status == 409:
        return LeaseStatus.SUPERSEDED
    if 400 <= refused.status < 500 and refused.status not in _MAY_PASS:
        return LeaseStatus.REFUSED
    return LeaseStatus.ROUTER_AWAY


def _headers(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}", "content-type": "application/json"}


def _code(body: bytes) -> str | None:
    """Return the code of an error, which names what is wrong without quoting anything."""
    try:
        return _Envelope.model_validate_json(body).error.code
    except ValidationError:
        return None
