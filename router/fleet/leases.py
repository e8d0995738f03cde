"""The router's side of the lease protocol: register, renew, release."""

from __future__ import annotations

import secrets

from router.errors import LeaseProtocolUnsupported
from router.fleet.address import check_agent_url
from router.fleet.deployments import agent_endpoint_id
from router.fleet.membership import Member
from router.fleet.registry import Fleet
from router.ports import LeaseStore
from shared.contracts.agents import PROTOCOL_VERSION, Heartbeat, LeaseGrant, Registration
from shared.http.errors import ApiError, Conflict, NotFound
from shared.kit.logs import get_logger


class LeaseDesk:
    """Takes agents in and hears them out. Memory first; the registry follows in batches.

    While the registry can't be written, agents are taken in all the same: the fleet goes on, and
    what was not written is written later.
    """

    def __init__(
        self,
        fleet: Fleet,
        store: LeaseStore,
        *,
        ttl_s: float,
        renew_s: float,
        allowed_addresses: frozenset[str],
        epoch: str = "",
    ) -> None:
        """Take what it needs; `epoch` tells agents one start of the router from the next."""
        self._fleet = fleet
        self._store = store
        self._ttl_s = ttl_s
        self._renew_s = renew_s
        self._allowed_addresses = allowed_addresses
        self._epoch = epoch
        self._unsaved_members: dict[int, tuple[str, Registration, str]] = {}
        self._unsaved: dict[int, tuple[int, str, Heartbeat]] = {}
        self._log = get_logger("leases")

    async def register(
        self, row_id: int, name: str, agent_id: str, registration: Registration, caller: str
    ) -> LeaseGrant:
        """Take an agent in.

        Raises:
            LeaseProtocolUnsupported: the protocol is not ours.
            AgentAddressRefused: its URL is not its own.
            Forbidden: the credential belongs to another agent.
            Conflict: a newer incarnation has registered.
            NotFound: a newer message of this incarnation was heard; this one came late.
        """
        if registration.protocol != PROTOCOL_VERSION:
            raise LeaseProtocolUnsupported(
                f"This router speaks version {PROTOCOL_VERSION} of the lease protocol, the agent "
                f"version {registration.protocol}. Install the same release on both sides.",
                param="protocol",
            )
        url = check_agent_url(registration.base_url, caller, self._allowed_addresses)
        self._refuse_late(row_id, agent_id, registration.incarnation, registration.seq)
        registration = registration.model_copy(update={"base_url": url})
        lease_id = secrets.token_hex(8)
        self._unsaved_members.pop(row_id, None)
        is_saved = True
        try:
            await self._store.save_registration(row_id, agent_id, registration, lease_id)
        except OSError as exc:
            is_saved = False
            self._log.warning("registration_not_saved", agent=name, reason=str(exc))
        membership = self._fleet.membership
        if membership.register(row_id, name, agent_id, registration, lease_id) is None:
            # another message of it was faster
            self._refuse_late(row_id, agent_id, registration.incarnation, registration.seq)
        if not is_saved:
            self._unsaved_members[row_id] = agent_id, registration, lease_id
        self._fleet.patch()
        # whatever failed before was another life of it
        self._fleet.breakers.forget(agent_endpoint_id(name))
        self._fleet.rests.forget(agent_endpoint_id(name))
        self._log.info("agent_registered", agent=name, models=len(registration.models))
        return self._grant(lease_id)

    def renew(self, row_id: int, agent_id: str, heartbeat: Heartbeat) -> LeaseGrant:
        """Renew a lease.

        Raises:
            NotFound: there is no such lease; the agent has to register.
            Conflict: a newer incarnation has registered.
        """
        known = self._member(row_id, agent_id)
        if known.registration.incarnation > heartbeat.incarnation:
            raise _superseded()
        member = self._fleet.membership.renew(row_id, heartbeat)
        if member is None:
            raise _no_lease()
        if member.heartbeat is not None and member.heartbeat.seq == heartbeat.seq:
            self._fleet.patch()
            self._unsaved[row_id] = (row_id, heartbeat.lease_id, member.heartbeat)
        return self._grant(heartbeat.lease_id)

    async def release(
        self, row_id: int, agent_id: str, incarnation: int | None, seq: int | None
    ) -> None:
        """End a lease at its agent's wish; older agents send neither incarnation nor seq.

        Raises:
            NotFound: there is no such lease, or this came late.
            Conflict: a newer incarnation has registered.
        """
        member = self._member(row_id, agent_id)
        if incarnation is not None:
            self._refuse_late(row_id, agent_id, incarnation, seq)
        self._unsaved.pop(row_id, None)
        self._unsaved_members.pop(row_id, None)
        self._fleet.membership.release(row_id, seq)
        self._log.info("agent_released", agent=member.name)
        try:
            await self._store.release(row_id)
        except OSError as exc:
            self._log.warning("release_not_saved", reason=str(exc))

    async def flush(self) -> None:
        """Write what came since the last time; what is not written stays for the next.

        Raises:
            OSError: the registry can't be written now.
        """
        for row_id, (agent_id, registration, lease_id) in list(self._unsaved_members.items()):
            try:
                await self._store.save_registration(row_id, agent_id, registration, lease_id)
            except ApiError as exc:  # another process knows better, and this one hears of it
                self._log.warning("registration_not_saved", reason=exc.code)
            if self._unsaved_members.get(row_id, ("", None, ""))[2] == lease_id:
                del self._unsaved_members[row_id]
        if not self._unsaved:
            return
        batch, self._unsaved = self._unsaved, {}
        try:
            await self._store.save_heartbeats(list(batch.values()))
        except OSError:
            self._unsaved = {**batch, **self._unsaved}
            raise

    def _refuse_late(self, row_id: int, agent_id: str, incarnation: int, seq: int | None) -> None:
        known = self._fleet.membership.get(row_id)
        if known is None or known.agent_id != agent_id:
            return
        if known.registration.incarnation > incarnation:
            raise _superseded()
        if known.has_heard(incarnation, seq):
            raise NotFound("A newer message of this agent came before. Register anew.")

    def _member(self, row_id: int, agent_id: str) -> Member:
        member = self._fleet.membership.get(row_id)
        if member is None or member.agent_id != agent_id:
            raise _no_lease()
        return member

    def _grant(self, lease_id: str) -> LeaseGrant:
        return LeaseGrant(
            lease_id=lease_id, ttl_s=self._ttl_s, renew_s=self._renew_s, epoch=self._epoch
        )


def _no_lease() -> NotFound:
    return NotFound("There is no such lease. Register first.")


def _superseded() -> Conflict:
    return Conflict(
        "A newer start of this agent has registered. Only one agent may run per identity."
    )
