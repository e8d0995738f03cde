"""The registry behind the router's ports: database errors become `OSError`, refusals API errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection

from router.domain import Catalog, KnownModel, LeaseBook, ModelsChange, ShownCredential
from router.errors import JoinTokenRefused
from router.ports import ClusterRow, CredentialStore, KnownModels, LeaseStore, RegistrySource
from router.store.agents import release_lease, save_heartbeats, save_registration
from router.store.cluster import admit_cluster
from router.store.errors import (
    CredentialRefused,
    InvalidValue,
    NameTaken,
    StoreError,
    Superseded,
    TokenRefused,
    TooLate,
)
from router.store.joining import join, promote, rotate
from router.store.known_models import change_known_models, list_known_models
from router.store.reader import RegistryReader
from router.store.writer import RegistryWriter
from shared.contracts.agents import Heartbeat, Registration
from shared.http.errors import BadRequest, Conflict, Forbidden, NotFound

T = TypeVar("T")


class StoredLeases(LeaseStore):
    """Agents' registrations and leases in the registry."""

    def __init__(self, writer: RegistryWriter) -> None:
        self._writer = writer

    async def save_registration(
        self, row_id: int, agent_id: str, registration: Registration, lease_id: str
    ) -> None:
        """See `LeaseStore.save_registration`."""
        await self._run(lambda c: save_registration(c, row_id, agent_id, registration, lease_id))

    async def save_heartbeats(self, beats: Sequence[tuple[int, str, Heartbeat]]) -> None:
        """See `LeaseStore.save_heartbeats`."""
        await self._run(lambda c: save_heartbeats(c, beats))

    async def release(self, row_id: int) -> None:
        """See `LeaseStore.release`."""
        await self._run(lambda c: release_lease(c, row_id))

    async def _run(self, write: Callable[[Connection], T]) -> T:
        with _translated():
            return await self._writer.run(write)


class StoredCredentials(CredentialStore):
    """Agents' credentials in the registry."""

    def __init__(self, writer: RegistryWriter) -> None:
        self._writer = writer

    async def join(self, token: str, name: str, present: ShownCredential | None) -> tuple[str, str]:
        """See `CredentialStore.join`."""
        with _translated():
            joined = await self._writer.run(lambda c: join(c, token, name, present))
        return joined.name, joined.credential

    async def rotate(self, present: ShownCredential) -> tuple[str, str]:
        """See `CredentialStore.rotate`."""
        with _translated():
            joined = await self._writer.run(lambda c: rotate(c, present))
        return joined.name, joined.credential

    async def promote(self, present: ShownCredential) -> bool:
        """See `CredentialStore.promote`."""
        with _translated():
            return await self._writer.run(lambda c: promote(c, present))


class StoredModels(KnownModels):
    """What clusters were seen to serve, in the registry."""

    def __init__(self, writer: RegistryWriter) -> None:
        self._writer = writer

    async def load(self) -> Sequence[KnownModel]:
        """See `KnownModels.load`."""
        with _translated():
            return await self._writer.run(list_known_models)

    async def save(self, change: ModelsChange) -> None:
        """See `KnownModels.save`."""
        with _translated():
            await self._writer.run(lambda c: change_known_models(c, change))


class StoredCluster(ClusterRow):
    """The row of the provider `llmd` in the registry."""

    def __init__(self, writer: RegistryWriter) -> None:
        self._writer = writer

    async def admit(self) -> bool:
        """See `ClusterRow.admit`."""
        with _translated():
            return await self._writer.run(admit_cluster)


class StoredRegistry(RegistrySource):
    """The catalog and the leases in the registry."""

    def __init__(self, reader: RegistryReader) -> None:
        self._reader = reader

    def catalog(self, known_version: int | None) -> Catalog | None:
        """See `RegistrySource.catalog`."""
        with _translated():
            return self._reader.catalog(known_version)

    def leases(self, known_version: int | None) -> LeaseBook | None:
        """See `RegistrySource.leases`."""
        with _translated():
            return self._reader.leases(known_version)

    def close(self) -> None:
        """See `RegistrySource.close`."""
        self._reader.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise OSError(str(error)) from error
    except CredentialRefused as error:
        raise Forbidden(f"The router refused the agent: {error}.") from error
    except Superseded as error:
        raise Conflict(f"The router refused the agent: {error}.") from error
    except TooLate as error:
        raise NotFound(f"The router refused the agent: {error}. Register anew.") from error
    except TokenRefused as error:
        raise JoinTokenRefused(
            f"The router refused to take the agent in: {error}. Make another on the router's "
            "machine: iir agents invite"
        ) from error
    except NameTaken as error:
        raise Conflict(f"The router refused to take the agent in: {error}.") from error
    except InvalidValue as error:
        raise BadRequest(f"The router refused to take the agent in: {error}.") from error
