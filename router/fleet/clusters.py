"""What probes tell of llm-d clusters: which models each serves, whether it is cold, how much waits there.

A list comes from one pod, chosen at random, and pods may differ in their adapters; so a name counts for
as long as one of the last answers had it. A cluster that can't be asked, or has no pods just now, keeps
its names: what is served inside must not fall to a prefix rule, which may lead to a cloud.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from msgspec.structs import replace

from router.domain import (
    DeploymentEntry,
    Endpoint,
    EndpointId,
    ModelEntry,
    ModelName,
    Probed,
    ServedModel,
    Zone,
)

_ANSWERS = 6
_OUTWARD = (Zone.LOCAL, Zone.CLUSTER, Zone.CLOUD)


class ClusterState(str, Enum):
    """How a cluster stood when it was last asked."""

    UNKNOWN = "unknown"
    READY = "ready"
    UNLISTED = "answers, without a list of models"
    COLD = "cold"
    UNREACHABLE = "unreachable"


@dataclass(slots=True)
class _Cluster:
    endpoint: Endpoint
    answers: deque[tuple[ServedModel, ...]] = field(default_factory=lambda: deque(maxlen=_ANSWERS))
    state: ClusterState = ClusterState.UNKNOWN
    queued: int = 0

    def models(self) -> dict[str, ServedModel]:
        """Return what it serves; of each the newest answer counts."""
        return {model.id: model for answer in self.answers for model in answer}


class Clusters:
    """One entry per endpoint with a gateway. Methods never await, so each is atomic."""

    def __init__(self) -> None:
        """Know none."""
        self._clusters: dict[EndpointId, _Cluster] = {}
        self._entries: dict[str, ModelEntry] = {}

    def keep(self, endpoints: Iterable[Endpoint | None]) -> None:
        """Take who is there now; what is known of those that stayed is kept."""
        found: dict[EndpointId, _Cluster] = {}
        for endpoint in endpoints:
            if endpoint is None or endpoint.gateway is None:
                continue
            known = self._clusters.get(endpoint.id)
            is_same = known is not None and known.endpoint.base_url == endpoint.base_url
            found[endpoint.id] = known if known and is_same else _Cluster(endpoint)
        self._clusters = found
        self._index()

    def learn(self, endpoint: EndpointId, told: Probed) -> bool:
        """Take what a probe found; tell whether there are other models now."""
        cluster = self._clusters.get(endpoint)
        if cluster is None:
            return False
        cluster.queued = told.queued or 0
        if told.is_cold:
            cluster.state = ClusterState.COLD
        elif told.models is None:
            cluster.state = ClusterState.UNLISTED
        else:
            cluster.state = ClusterState.READY
        if not told.models:
            return False
        before = cluster.models()
        # vLLM dates its models anew with each list
        cluster.answers.append(
            tuple(
                (
                    replace(model, created_at=before[model.id].created_at)
                    if model.id in before
                    else model
                )
                for model in told.models
            )
        )
        if cluster.models() == before:
            return False
        self._index()
        return True

    def miss(self, endpoint: EndpointId) -> None:
        """Note that a probe got no answer."""
        cluster = self._clusters.get(endpoint)
        if cluster is not None:
            cluster.state = ClusterState.UNREACHABLE
            cluster.queued = 0

    def entry(self, name: str) -> ModelEntry | None:
        """Return a model that clusters serve, under its own name; None if none does."""
        return self._entries.get(name)

    def entries(self) -> Iterable[ModelEntry]:
        """Return all of them."""
        return self._entries.values()

    def queued(self, endpoint: EndpointId) -> int:
        """Return how many requests waited there when it was last asked."""
        cluster = self._clusters.get(endpoint)
        return 0 if cluster is None else cluster.queued

    def is_cold(self, endpoint: EndpointId) -> bool:
        """Tell whether it had nothing that could serve when it was last asked."""
        cluster = self._clusters.get(endpoint)
        return cluster is not None and cluster.state is ClusterState.COLD

    def is_new(self, endpoint: EndpointId) -> bool:
        """Tell whether it is a cluster that was never asked."""
        cluster = self._clusters.get(endpoint)
        return cluster is not None and cluster.state is ClusterState.UNKNOWN

    def untold(self) -> list[EndpointId]:
        """Return the clusters of which nobody knows yet what they serve."""
        return [name for name, cluster in self._clusters.items() if not cluster.answers]

    def __iter__(self) -> Iterator[tuple[EndpointId, ClusterState]]:
        """Iterate over the clusters and how they stand."""
        return ((name, cluster.state) for name, cluster in self._clusters.items())

    def _index(self) -> None:
        """Name the models; of the clusters that have one, only those of the innermost zone count.

        Whatever is served inside goes further out by a row only: nobody's list may decide that.
        """
        self._entries = {}
        zones: dict[str, Zone] = {}
        for cluster in sorted(self._clusters.values(), key=_distance):
            zone = cluster.endpoint.zone
            for model in cluster.models().values():
                if zones.setdefault(model.id, zone) is not zone:
                    continue
                known = self._entries.get(model.id)
                places = () if known is None else known.deployments
                self._entries[model.id] = ModelEntry(
                    id=ModelName(model.id),
                    created_at=model.created_at if known is None else known.created_at,
                    deployments=(*places, _deployed(model, cluster.endpoint.id)),
                )


def _distance(cluster: _Cluster) -> int:
    return _OUTWARD.index(cluster.endpoint.zone)


def _deployed(model: ServedModel, provider: EndpointId) -> DeploymentEntry:
    return DeploymentEntry(
        provider=provider,
        upstream_name=model.id,
        context_tokens=model.context_tokens,
        base_model=model.base_model,
    )
