"""Keeps the snapshot and the leases of this process at what the registry says."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from router.domain import Catalog, LeaseBook
from router.fleet.registry import Fleet
from router.ports import RegistrySource
from shared.kit.logs import get_logger


class RegistrySync:
    """Looks at the registry a few times a second, in a thread of its own.

    When the registry can't be read the last good snapshot stays, and `problem` says why.
    """

    def __init__(self, fleet: Fleet, source: RegistrySource) -> None:
        self._fleet = fleet
        self._source = source
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="registry-reader")
        self._catalog_version: int | None = None
        self._lease_version: int | None = None
        self._log = get_logger("registry")
        self.problem: str | None = None
        self.failures = 0

    async def load(self) -> None:
        """Read everything once, at start.

        Raises:
            OSError: the registry can't be read; there is nothing to serve from.
        """
        read_at = self._fleet.membership.now()
        self._take(*await self._look(), read_at)

    async def look(self) -> None:
        """Look once, and take what changed; never raises for a registry that can't be read."""
        read_at = self._fleet.membership.now()
        try:
            found = await self._look()
        except OSError as exc:
            self.failures += 1
            if self.problem is None:
                self._log.error("registry_unreadable", reason=str(exc))
            self.problem = str(exc)
            return
        if self.problem is not None:
            self._log.info("registry_readable_again")
            self.problem = None
        self._take(*found, read_at)

    async def close(self) -> None:
        """End the thread and its connection."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._source.close)
        self._thread.shutdown(wait=True)  # idle by now: it ends at once

    async def _look(self) -> tuple[Catalog | None, LeaseBook | None]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read)

    def _read(self) -> tuple[Catalog | None, LeaseBook | None]:
        catalog = self._source.catalog(self._catalog_version)
        return catalog, self._source.leases(self._lease_version)

    def _take(self, catalog: Catalog | None, book: LeaseBook | None, read_at: float) -> None:
        if catalog is not None:
            self._catalog_version = catalog.version
            self._fleet.swap(catalog)
            self._log.info("catalog_loaded", version=catalog.version, models=len(catalog.models))
        if book is not None:
            self._lease_version = book.version
            self._fleet.membership.merge(book, read_at)
            self._fleet.patch()
