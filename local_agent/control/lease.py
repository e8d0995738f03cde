"""Keeps the agent's lease with its router, whatever becomes of either.

The router may be away, start anew or lose its registry: the agent goes on serving local clients,
tries again, and registers when it is told to.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Protocol

import anyio
import httpx
import structlog
from pydantic import ValidationError

from shared.contracts.agents import AgentModel, AgentState, Heartbeat, LeaseGrant, Queue, Registration
from shared.kit.backoff import backoff_s

_CREDENTIAL_WAIT_S = 60.0
_NO_CREDENTIAL_WAIT_S = 2.0
_GOODBYE_S = 2.0


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
    """An answer that is not a grant: its status, 0 where there was no answer."""

    status: int


Answer = LeaseGrant | Refused


def next_wait_s(refused: Refused, failures: int, rng: Random) -> float:
    """Return how long to wait after a refusal: the router's absence is met with short backoff."""
    if refused.status in {401, 403}:
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
    ) -> None:
        """Take what it needs.

        Args:
            client: an HTTP client whose base URL is the router's.
            agent_id: the agent's id.
            credential: reads the credential; asked before each registration, so that one that is
                made or replaced later is found.
            subject: what heartbeats describe.
            rng: spreads heartbeats and tries over time.
        """
        self._client = client
        self._path = f"/internal/v1/agents/{agent_id}"
        self._credential = credential
        self._subject = subject
        self._rng = rng
        self._seq = 0
        self._log = structlog.get_logger("lease")
        self.status = LeaseStatus.STARTING

    async def run(self) -> None:
        """Hold the lease until cancelled, or until a newer start of this agent took over."""
        failures = 0
        grant: LeaseGrant | None = None
        while self.status is not LeaseStatus.SUPERSEDED:
            answer = await (self._renew(grant) if grant else self._register())
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
            self._note(answer)
            await anyio.sleep(self._wait_s(answer, failures))

    async def release(self) -> None:
        """Give the lease back; a router that does not answer finds out by itself."""
        if self.status is LeaseStatus.HELD:
            with anyio.move_on_after(_GOODBYE_S, shield=True), suppress(httpx.HTTPError):
                await self._client.delete(f"{self._path}/lease", headers=self._headers())
        self._become(LeaseStatus.RELEASED)

    async def _register(self) -> Answer:
        if self._credential() is None:
            return Refused(-1)
        return await self._put(self._path, self._subject.registration().model_dump_json())

    async def _renew(self, grant: LeaseGrant) -> Answer:
        self._seq += 1
        heartbeat = Heartbeat(
            lease_id=grant.lease_id,
            incarnation=self._subject.registration().incarnation,
            seq=self._seq,
            state=self._subject.state(),
            queue=self._subject.queue(),
            models=self._subject.models(),
        )
        return await self._put(f"{self._path}/lease", heartbeat.model_dump_json())

    async def _put(self, path: str, body: str) -> Answer:
        try:
            response = await self._client.put(path, content=body, headers=self._headers())
            if response.status_code == 200:
                return LeaseGrant.model_validate_json(response.content)
        except (httpx.HTTPError, ValidationError):
            return Refused(0)
        return Refused(response.status_code)

    async def _until_due(self, grant: LeaseGrant) -> None:
        with anyio.move_on_after(grant.renew_s * self._rng.uniform(0.9, 1.1)):
            await self._subject.changed()

    def _headers(self) -> dict[str, str]:
        return {
            "authorization": f"Bearer {self._credential() or ''}",
            "content-type": "application/json",
        }

    def _wait_s(self, refused: Refused, failures: int) -> float:
        if self.status is LeaseStatus.NO_CREDENTIAL:
            return _NO_CREDENTIAL_WAIT_S
        return next_wait_s(refused, failures, self._rng)

    def _note(self, refused: Refused) -> None:
        if refused.status == -1:
            self._become(LeaseStatus.NO_CREDENTIAL)
        elif refused.status in {401, 403}:
            self._become(LeaseStatus.REFUSED)
        elif refused.status == 409:
            self._become(LeaseStatus.SUPERSEDED)
        else:
            self._become(LeaseStatus.ROUTER_AWAY)

    def _become(self, status: LeaseStatus) -> None:
        if status is not self.status:
            self.status = status
            self._log.info("lease", status=status.value)
