"""The router's side of joining: tokens and present credentials are exchanged for new ones."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from router.domain import ShownCredential
from router.errors import TooManyJoins
from router.ports import CredentialStore
from shared.contracts.agents import CredentialGrant
from shared.http.errors import Unavailable
from shared.kit.clock import Clock
from shared.kit.logs import get_logger

_V6_SITE_BITS = 64


class Allowance:
    """How often an address may try: `burst` times at once, and again one per `refill_s`.

    A token has 200 random bits, so this is not what keeps it from being guessed: it keeps a
    stranger from occupying the registry's only writer.
    """

    def __init__(
        self, clock: Clock, *, burst: int = 10, refill_s: float = 6.0, most: int = 1024
    ) -> None:
        """Remember at most `most` addresses; who tried longest ago is forgotten first."""
        self._clock = clock
        self._burst = burst
        self._refill_s = refill_s
        self._most = most
        # when each address will have all its tries back
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, address: str) -> None:
        """Take one try.

        Raises:
            TooManyJoins: there is none left now.
        """
        now = self._clock()
        site = _site(address)
        full_at = max(self._full_at.get(site, now), now) + self._refill_s
        over_s = full_at - now - self._burst * self._refill_s
        if over_s > 0:
            raise TooManyJoins(
                "This address has tried to join too often. Try again later.", retry_after_s=over_s
            )
        self._full_at[site] = full_at
        self._full_at.move_to_end(site)
        while len(self._full_at) > self._most:
            self._full_at.popitem(last=False)


class JoinDesk:
    """Hands out credentials. The registry must be writable: nothing is promised that is not kept."""

    def __init__(
        self,
        store: CredentialStore,
        refresh: Callable[[], Awaitable[None]],
        clock: Clock,
    ) -> None:
        """Take what it needs; `refresh` makes this process see what was written."""
        self._store = store
        self._refresh = refresh
        self._allowance = Allowance(clock)
        self._unsaved: dict[ShownCredential, str] = {}
        self._log = get_logger("joining")

    async def join(
        self, token: str, name: str, *, present: ShownCredential | None, address: str
    ) -> CredentialGrant:
        """Exchange a token for a credential.

        Args:
            token: the invitation's token.
            name: what the agent calls itself.
            present: what it showed, if it has a credential that is in force.
            address: where it calls from.

        Raises:
            TooManyJoins: this address tries too often.
            JoinTokenRefused: the token is unknown, used or expired.
            BadRequest: the name has a form that is not taken.
            Conflict: another agent has the name.
            Forbidden: the shown credential has ended meanwhile.
            Unavailable: the registry can't be written now; the token is not used up.
        """
        self._allowance.take(address)
        try:
            known_as, credential = await self._store.join(token, name, present)
        except OSError as exc:
            raise self._unwritable(exc) from exc
        self._log.info("agent_joined", agent=known_as)
        await self._refresh()
        return CredentialGrant(name=known_as, credential=credential)

    async def rotate(self, present: ShownCredential) -> CredentialGrant:
        """Exchange a present credential for a new one; it ends when the new one is used.

        Raises:
            Forbidden: the agent was revoked.
            Unavailable: the registry can't be written now.
        """
        try:
            name, credential = await self._store.rotate(present)
        except OSError as exc:
            raise self._unwritable(exc) from exc
        self._log.info("agent_credential_made", agent=name)
        await self._refresh()
        return CredentialGrant(name=name, credential=credential)

    async def used(self, present: ShownCredential, name: str) -> None:
        """Hear that an agent has its new credential and uses it: the one before ends.

        If that can't be written now, the next use tries again.
        """
        try:
            was_next = await self._store.promote(present)
        except OSError as exc:
            self._log.warning("credential_not_ended", agent=name, reason=str(exc))
            return
        if was_next:
            self._log.info("agent_credential_ended", agent=name)
        await self._refresh()

    def note_use(self, present: ShownCredential, name: str) -> None:
        """Hear the same without waiting for the registry: `flush` writes it."""
        self._unsaved[present] = name

    async def flush(self) -> None:
        """Write what was noted since the last time."""
        batch, self._unsaved = self._unsaved, {}
        for present, name in batch.items():
            await self.used(present, name)

    def _unwritable(self, cause: OSError) -> Unavailable:
        self._log.warning("credential_not_made", reason=str(cause))
        return Unavailable(
            "The router can't write its registry now, so it makes no credential. Try again soon.",
            retry_after_s=5,
        )


def _site(address: str) -> str:
    """Return what counts as one caller: an address, or the network that one IPv6 site owns."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _V6_SITE_BITS), strict=False))
