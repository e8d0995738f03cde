"""Clusters as the tests of the fleet know them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from router.domain import Endpoint, EndpointId, Gateway, Probed, Provider, ServedModel, Zone
from router.fleet.clusters import Clusters

Place = tuple[Provider, Endpoint | None]
LLMD = Provider(name="llmd", dialect="llmd", base_url="http://x", zone=Zone.CLUSTER)


def cluster_endpoint(
    name: str = "llmd", url: str = "http://x/v1", zone: Zone = Zone.CLUSTER
) -> Endpoint:
    return Endpoint(id=EndpointId(name), base_url=url, backend="llmd", zone=zone, gateway=Gateway())


def place(name: str = "llmd", url: str = "http://x/v1", zone: Zone = Zone.CLUSTER) -> Place:
    """Return a cluster's row with its endpoint."""
    return provider_row(name, zone), cluster_endpoint(name, url, zone)


def provider_row(name: str, zone: Zone = Zone.CLUSTER) -> Provider:
    return replace(LLMD, name=name, zone=zone)


def told(*names: str, **fields: Any) -> Probed:
    return Probed(models=tuple(ServedModel(id=name) for name in names), **fields)


def names(clusters: Clusters) -> list[str]:
    return sorted(found.id for found in clusters.entries())
