"""Follows the address of the provider `llmd`, which `.env` may change while the router runs.

`make k3s-up` and `k3s-down` write it there. There is one place that says it, for a router that runs as for
one that starts: a row beside it could name another address, and which of the two counts nobody could tell.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from router.domain import LLMD
from router.fleet.endpoints import ProviderEndpoints
from router.fleet.registry import Fleet
from router.ports import ClusterRow
from shared.kit.logs import get_logger


class AddressSource(Protocol):
    """The settings, as they were loaded and as they are now."""

    @property
    def stamp(self) -> object:
        """Return what told the state of `.env` when the settings were loaded."""
        ...

    def stamp_now(self) -> object:
        """Return what tells its state now: another value once it has changed.

        Raises:
            OSError: that can't be told now.
        """
        ...

    def llmd_endpoint_now(self) -> str | None:
        """Return the address as environment and `.env` have it now.

        Raises:
            ValueError: a setting has a form that is not taken.
            OSError: `.env` can't be read.
        """
        ...


class AddressFollower:
    """Takes another address at once; `look` is to be called a few times a second."""

    def __init__(
        self, source: AddressSource, endpoints: ProviderEndpoints, fleet: Fleet, row: ClusterRow
    ) -> None:
        """Begin with the address that `endpoints` has."""
        self._source = source
        self._endpoints = endpoints
        self._fleet = fleet
        self._row = row
        self._taken = source.stamp
        self._seen = source.stamp
        self._log = get_logger("clusters")
        self._is_failing = False

    async def catch_up(self) -> None:
        """Take the address of now before anything is served: a worker has settings that its parent loaded."""
        await self.look()
        await self.look()  # it has come to rest

    async def look(self) -> None:
        """Take the address if `.env` has changed and come to rest: who writes it may not be done."""
        try:
            await self._look()
        except OSError as error:  # the next look tries again
            if not self._is_failing:  # once per outage
                # without its path
                self._log.warning("llmd_endpoint_not_taken", reason=error.strerror or str(error))
            self._is_failing = True
        else:
            self._is_failing = False

    def warn_of_row(self) -> None:
        """Say that the address is of no use, as the row `llmd` is another dialect's."""
        text = f"remove the provider {LLMD!r}, which speaks another dialect: iir providers remove"
        self._log.warning("llmd_endpoint_ignored", next_step=text)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        stamp = await loop.run_in_executor(None, self._source.stamp_now)
        is_moving, self._seen = stamp != self._seen, stamp
        if stamp == self._taken or is_moving:
            return
        try:
            address = await loop.run_in_executor(None, self._source.llmd_endpoint_now)
            if await loop.run_in_executor(None, self._source.stamp_now) != stamp:
                return  # it was written meanwhile, and may have been away: the next look reads it
        except ValueError as error:
            # a router that starts now refuses it; this one goes on as it was
            self._log.warning("settings_not_taken", reason=str(error))
        else:
            if address != self._endpoints.llmd_endpoint:
                await self._take(address)
        self._taken = stamp

    async def _take(self, address: str | None) -> None:
        if address is not None and not await self._row.admit():
            self.warn_of_row()
        self._endpoints.llmd_endpoint = address
        self._fleet.swap(self._fleet.catalog)
        self._log.info("llmd_endpoint_changed", is_set=address is not None)
