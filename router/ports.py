"""Every seam of the router, in one place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from router.domain import (
    Call,
    Candidate,
    Catalog,
    Deployment,
    Endpoint,
    EndpointId,
    KeyId,
    KnownModel,
    LeaseBook,
    ModelsChange,
    Outcome,
    Probed,
    Ranked,
    RequestFacts,
    ShownCredential,
)
from shared.contracts.agents import Heartbeat, Registration
from shared.http.exchange import Reply
from shared.http.transport import InboundResponse, OutboundRequest

TenantOf = Callable[[KeyId | None], str | None]
"""Returns what stands for a key's owner where an upstream shares fairly among tenants.

It is always the same for a key, and tells nothing of it. None: nobody in particular.
"""


class Backend(Protocol):
    """Speaks one wire protocol to endpoints; raises only `ApiError` (see `router.errors`)."""

    def send(self, deployment: Deployment, call: Call) -> AbstractAsyncContextManager[Reply]:
        """Open the call and enter when the first body chunk is in hand.

        Leaving the context closes the upstream, whatever phase it is in. Until it is entered,
        nothing was committed, so every error may be followed by another attempt if it says so
        (`is_retryable`).
        """
        ...

    async def probe(self, endpoint: Endpoint) -> Probed:
        """Ask an endpoint whether it answers at all; the cheapest question its protocol has.

        Raises:
            ApiError: it can't be reached, or is out of order.
        """
        ...


@runtime_checkable
class PlainBackend(Backend, Protocol):
    """A backend whose plain calls, those that ask for no stream, may be sent before `send` is entered.

    What it makes of their answers goes for others only: a success passes as it is.
    """

    def plain_request(self, deployment: Deployment, call: Call) -> OutboundRequest:
        """Return a plain call as it goes to its endpoint."""
        ...

    def resume(
        self,
        opening: AbstractAsyncContextManager[InboundResponse],
        deployment: Deployment,
        call: Call,
    ) -> AbstractAsyncContextManager[Reply]:
        """Do as `send`, with a plain request that was sent: entering `opening` waits for its answer."""
        ...


class RoutingPolicy(ABC):
    """Ranks candidates, best first. Synchronous and pure: no I/O, clock or global randomness.

    One ranking gives the choice, the failover order and the reason shown to the user.
    """

    @abstractmethod
    def rank(self, facts: RequestFacts, candidates: Sequence[Candidate]) -> Sequence[Ranked]:
        """Return a permutation of a subset of `candidates`."""

    def observe(self, facts: RequestFacts, outcome: Outcome) -> None:  # noqa: B027 - optional
        """Learn from one attempt; called once per attempt, after it ended."""

    def forget(self, endpoint: EndpointId) -> None:  # noqa: B027 - optional
        """Drop what was learned of an endpoint that left the fleet."""


class OutcomeSink(Protocol):
    """Takes what became of each attempt: metrics, usage ledger. Must not block or raise."""

    def record(self, facts: RequestFacts, outcome: Outcome) -> None:
        """Take one outcome; called on the event loop."""
        ...


class LeaseStore(Protocol):
    """Keeps agents' registrations and leases beyond the life of this process.

    Each method raises `OSError` when the registry can't be written now; nothing was then.
    """

    async def save_registration(
        self, row_id: int, agent_id: str, registration: Registration, lease_id: str
    ) -> None:
        """Keep a registration.

        Raises:
            Forbidden: the credential belongs to another agent, or was revoked.
            Conflict: a newer incarnation of the agent has registered.
            NotFound: a newer message of the same incarnation was kept.
        """
        ...

    async def save_heartbeats(self, beats: Sequence[tuple[int, str, Heartbeat]]) -> None:
        """Keep the last heartbeats: row, lease, message."""
        ...

    async def release(self, row_id: int) -> None:
        """Keep that the agent gave its lease back."""
        ...


class CredentialStore(Protocol):
    """Gives agents their credentials.

    Each method raises `OSError` when the registry can't be written now; nothing was then.
    """

    async def join(self, token: str, name: str, present: ShownCredential | None) -> tuple[str, str]:
        """Use a join token up; return the agent's name and its new credential.

        `present` is what an agent in force showed, None for anybody else.

        Raises:
            JoinTokenRefused: the token is unknown, used or expired.
            BadRequest: the name has a form that is not taken.
            Conflict: another agent has the name.
            Forbidden: the agent was revoked.
        """
        ...

    async def rotate(self, present: ShownCredential) -> tuple[str, str]:
        """Return an agent's name and the credential that will follow its present one.

        Raises:
            Forbidden: the agent was revoked.
        """
        ...

    async def promote(self, present: ShownCredential) -> bool:
        """End the credential before this one; tell whether there was one."""
        ...


class KnownModels(Protocol):
    """Keeps which models clusters were seen to serve beyond the life of this process.

    Each method raises `OSError` when the registry can't be used now; nothing was written then.
    """

    async def load(self) -> Sequence[KnownModel]:
        """Return those of all clusters."""
        ...

    async def save(self, change: ModelsChange) -> None:
        """Keep a change, unless the cluster is no longer there."""
        ...


class ClusterRow(Protocol):
    """Keeps the row of the provider `llmd`, whose address is a setting."""

    async def admit(self) -> bool:
        """Make the row unless it is there; tell whether it is a cluster's.

        Raises:
            OSError: the registry can't be written now; nothing was.
        """
        ...


class RegistrySource(Protocol):
    """Reads the registry; called from one thread, never from the event loop.

    Both methods raise `OSError` when the registry can't be read now.
    """

    def catalog(self, known_version: int | None) -> Catalog | None:
        """Return the catalog, or None if it is still at `known_version`."""
        ...

    def leases(self, known_version: int | None) -> LeaseBook | None:
        """Return all agents, or None if nothing changed since `known_version`."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...
