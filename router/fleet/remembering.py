"""Keeps what clusters serve over a restart, and says what may go wrong while nobody knows it."""

from __future__ import annotations

from router.domain import ModelsChange, Zone
from router.fleet.registry import Fleet
from router.ports import KnownModels
from shared.kit.logs import get_logger


class ClusterMemory:
    """Brings the fleet's clusters and what is kept of them together."""

    def __init__(self, fleet: Fleet, store: KnownModels) -> None:
        self._fleet = fleet
        self._store = store
        self._is_failing = False
        self._log = get_logger("clusters")

    async def load(self) -> None:
        """Let the fleet know what was known before; at the start, while no request was resolved yet.

        Raises:
            OSError: the registry can't be read.
        """
        self._fleet.clusters.remember(await self._store.load())

    async def flush(self) -> None:
        """Keep what is new; what can't be written now is tried again with the next call."""
        for change in self._fleet.clusters.unsaved():
            is_saved = await self._save(change)
            self._fleet.clusters.mark_saved(change, is_saved=is_saved)

    def warn(self) -> None:
        """Say which prefix rules may send outside what a cluster serves that has told nothing yet."""
        catalog = self._fleet.catalog
        in_use = {endpoint.id for endpoint in self._fleet.endpoints()}
        outward = [
            rule.prefix
            for rule in catalog.prefix_rules
            if rule.provider in in_use and catalog.providers[rule.provider].zone is Zone.CLOUD
        ]
        for cluster in self._fleet.clusters.unlisted() if outward else ():
            self._log.warning(
                "prefix_rules_lead_outside",
                cluster=cluster,
                prefixes=", ".join(sorted(outward)),
                reason="the cluster has not said yet what it serves; names that nobody knows go by prefix",
                next_step=f"give its models rows: iir providers refresh {cluster}",
            )

    async def _save(self, change: ModelsChange) -> bool:
        try:
            await self._store.save(change)
        except OSError as error:
            if not self._is_failing:  # once per outage
                self._log.warning("cluster_models_not_saved", reason=str(error))
            self._is_failing = True
            return False
        self._is_failing = False
        return True
