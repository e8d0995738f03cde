"""What probes tell of llm-d clusters: which models each serves, whether it is cold, how much waits there.

A list comes from one pod, chosen at random, and pods may differ in their adapters; so a name is kept until
lists have lacked it for a day. A cluster that can't be asked, has no pods just now, has another address
since, or none, keeps its names, and what was known goes on to count after a restart: what is served
inside must not fall to a prefix rule, which may lead to a cloud.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from dataclasses import replace as with_values
from enum import Enum

from msgspec.structs import replace

from router.domain import (
    LLMD,
    DeploymentEntry,
    Endpoint,
    EndpointId,
    ForgottenName,
    KnownModel,
    ModelEntry,
    ModelName,
    ModelsChange,
    Probed,
    Provider,
    ServedModel,
    Zone,
)
from shared.kit.clock import Clock, monotonic

_KEPT_S = 24 * 3600.0
_LISTED_S = 300.0
# Looks may be rare, or have had no answer for days: so much at most counts between two lists.
_GAP_S = 3600.0
# What the registry has of a name that lists lack is as old as that, so that few lists cost a write.
_GRAIN_S = 3600
# The registry can lose what it was told: a restored file, a provider added anew, another router.
_WRITTEN_ANEW_S = 3600.0
_MOST_NAMES = 8192
# A new cluster is asked often until it has shown how it stands, but not for ever.
_MOST_DOUBTS = 10
# One that was ready may have lost one pod of many, which looks go to by chance.
_PODS_AWAY = 3
_OUTWARD = (Zone.LOCAL, Zone.CLUSTER, Zone.CLOUD)


class ClusterState(str, Enum):
    """How a cluster stood when it was last asked."""

    UNKNOWN = "unknown"
    READY = "ready"
    UNLISTED = "answers, without a list of models"
    REFUSED = "does not take the router's credential"
    COLD = "cold"
    DOUBTFUL = "its gateway answers, its pods do not"
    UNREACHABLE = "unreachable"


@dataclass(slots=True)
class _Known:
    """A model, and for how long, in seconds, lists have lacked it."""

    model: ServedModel
    missing_s: float = 0.0

    @property
    def record(self) -> tuple[ServedModel, int]:
        """Return what of it is kept over a restart."""
        return self.model, int(self.missing_s) // _GRAIN_S * _GRAIN_S


@dataclass(slots=True)
class _Cluster:
    """`base_url` is None while its address or credential is not set. `listed_at`: its last list here."""

    name: EndpointId
    zone: Zone
    base_url: str | None
    known: dict[str, _Known] = field(default_factory=dict)
    saved: dict[str, tuple[ServedModel, int]] = field(default_factory=dict)
    written_at: float | None = None
    state: ClusterState = ClusterState.UNKNOWN
    queued: int = 0
    listed_at: float | None = None
    doubts: int = 0

    def move(self, zone: Zone, base_url: str | None) -> None:
        """Take what the registry and the settings say of it now."""
        self.zone = zone
        if base_url != self.base_url:
            self.base_url = base_url
            self.state, self.queued, self.listed_at = ClusterState.UNKNOWN, 0, None
            self.doubts = 0

    def take(self, models: Iterable[ServedModel], now: float) -> bool:
        """Take a list; tell whether it has other models now."""
        before = {name: found.model for name, found in self.known.items()}
        passed_s = 0.0 if self.listed_at is None else min(max(now - self.listed_at, 0.0), _GAP_S)
        self.listed_at = now
        for found in self.known.values():
            found.missing_s += passed_s
        for model in models:
            dated = before.get(
                model.id, model
            ).created_at  # vLLM dates its models anew in each list
            self.known[model.id] = _Known(replace(model, created_at=dated))
        by_age = sorted(self.known.items(), key=lambda pair: pair[1].missing_s)
        self.known = {
            name: found for name, found in by_age[:_MOST_NAMES] if found.missing_s < _KEPT_S
        }
        return {name: found.model for name, found in self.known.items()} != before

    def change(self, now: float, heard: frozenset[ForgottenName]) -> ModelsChange | None:
        """Return what of it the registry may not have."""
        if self.written_at is None or now - self.written_at >= _WRITTEN_ANEW_S:
            self.saved = {
                name: record for name, record in self.saved.items() if name not in self.known
            }
            self.written_at = now
        records = {name: found.record for name, found in self.known.items()}
        gone = tuple(name for name in self.saved if name not in records)
        new = tuple(
            KnownModel(cluster=self.name, model=model, missing_s=missing_s)
            for name, (model, missing_s) in records.items()
            if self.saved.get(name) != (model, missing_s)
        )
        if not (new or gone):
            return None
        return ModelsChange(cluster=self.name, known=new, gone=gone, heard=heard)


class Clusters:
    """One entry per llm-d cluster of the registry. Methods never await, so each is atomic."""

    def __init__(self, clock: Clock = monotonic) -> None:
        """Know none; `clock` is a monotonic one."""
        self._clock = clock
        self._clusters: dict[EndpointId, _Cluster] = {}
        self._entries: dict[str, ModelEntry] = {}
        self._heard: set[EndpointId] = set()
        self._changed: set[EndpointId] = set()
        self._forgotten: frozenset[ForgottenName] = frozenset()

    def keep(self, providers: Iterable[tuple[Provider, Endpoint | None]]) -> None:
        """Take who is there now, and where; what is known of those that stayed is kept."""
        found: dict[EndpointId, _Cluster] = {}
        for provider, endpoint in providers:
            is_cluster = endpoint.gateway is not None if endpoint else provider.dialect == LLMD
            if not is_cluster:
                continue
            name = EndpointId(provider.name)
            base_url = None if endpoint is None else endpoint.base_url
            found[name] = self._clusters.get(name) or _Cluster(name, provider.zone, base_url)
            found[name].move(provider.zone, base_url)
            found[name].written_at = None  # it may be another file, or a row made anew
            self._changed.add(name)
        self._clusters = found
        self._index()

    def forget(self, forgotten: Iterable[ForgottenName]) -> None:
        """Let names go, each time that somebody said so once: a list may have brought one back since."""
        told = frozenset(forgotten)
        new, self._forgotten = told - self._forgotten, told
        for name, model, _ in new:
            cluster = self._clusters.get(EndpointId(name))
            if cluster is not None:
                cluster.known.pop(model, None)
                cluster.saved.pop(model, None)
        if new:
            self._index()

    def remember(self, known: Iterable[KnownModel]) -> None:
        """Take what was known before this process began."""
        for each in known:
            cluster = self._clusters.get(EndpointId(each.cluster))
            if cluster is not None and each.model.id not in cluster.known:
                found = cluster.known[each.model.id] = _Known(each.model, each.missing_s)
                cluster.saved[each.model.id] = found.record
        for cluster in self._clusters.values():
            cluster.written_at = self._clock()
        self._index()

    def learn(self, endpoint: EndpointId, told: Probed) -> bool:
        """Take what a probe found; tell whether there are other models now."""
        cluster = self._clusters.get(endpoint)
        if cluster is None:
            return False
        self._heard.discard(endpoint)
        cluster.queued = told.queued or 0
        cluster.state, cluster.doubts = _state_after(told), 0
        if not told.models:
            return False
        is_other = cluster.take(told.models, self._clock())
        self._changed.add(endpoint)
        if is_other:
            self._index()
        return is_other

    def miss(self, endpoint: EndpointId) -> None:
        """Note that a probe got no answer."""
        cluster = self._clusters.get(endpoint)
        self._heard.discard(endpoint)
        if cluster is not None:
            cluster.state, cluster.doubts = ClusterState.UNREACHABLE, 0
            cluster.queued = 0

    def doubt(self, endpoint: EndpointId) -> None:
        """Note that a probe got no further than the gateway: of other pods that alone tells nothing."""
        cluster = self._clusters.get(endpoint)
        if cluster is None:
            return
        is_heard = self.was_heard(endpoint)
        cluster.doubts += 1
        if cluster.state in {ClusterState.READY, ClusterState.UNLISTED}:
            cluster.doubts = 0 if is_heard else cluster.doubts
            is_doubtful = cluster.doubts >= _PODS_AWAY
        elif cluster.state is ClusterState.UNKNOWN:
            is_doubtful = cluster.doubts >= _MOST_DOUBTS
        else:
            is_doubtful = cluster.state is ClusterState.UNREACHABLE
        if is_doubtful:
            cluster.state = ClusterState.DOUBTFUL
        elif is_heard and cluster.state is ClusterState.DOUBTFUL and cluster.listed_at is not None:
            cluster.state, cluster.doubts = ClusterState.READY, 0

    def hear(self, endpoint: EndpointId) -> None:
        """Note that a request was answered there."""
        self._heard.add(endpoint)

    def was_heard(self, endpoint: EndpointId) -> bool:
        """Tell whether a request was answered there since its last look, or since this was asked."""
        is_heard = endpoint in self._heard
        self._heard.discard(endpoint)
        return is_heard

    def unsaved(self) -> list[ModelsChange]:
        """Return what the registry may not have; `mark_saved` follows."""
        if not self._changed:
            return []
        changed, self._changed = self._changed, set()
        now = self._clock()
        there = [self._clusters[name] for name in changed if name in self._clusters]
        found = [each.change(now, self._forgotten) for each in there]
        return [change for change in found if change is not None]

    def mark_saved(self, change: ModelsChange, *, is_saved: bool) -> None:
        """Note that the registry has a change now, or could not take it."""
        cluster = self._clusters.get(EndpointId(change.cluster))
        if cluster is None:
            return
        if not is_saved:
            self._changed.add(cluster.name)
            return
        for each in change.known:
            cluster.saved[each.model.id] = each.model, each.missing_s
        for name in change.gone:
            cluster.saved.pop(name, None)

    def entry(self, name: str) -> ModelEntry | None:
        """Return a model that clusters serve, under its own name; None if none does.

        One whose lists have lacked it for minutes keeps the name inside, but while another one lists it, that
        one is asked.
        """
        entry = self._entries.get(name)
        if entry is None or len(entry.deployments) == 1:
            return entry
        lists = [self._lists(EndpointId(place.provider), name) for place in entry.deployments]
        if all(lists) or not any(lists):
            return entry
        places = tuple(
            place for place, is_so in zip(entry.deployments, lists, strict=True) if is_so
        )
        return with_values(entry, deployments=places)

    def entries(self) -> Iterable[ModelEntry]:
        """Return those that can be asked for: lists have had them lately, and their cluster has an address."""
        return [
            entry
            for entry in self._entries.values()
            if any(self._shows(place.provider, entry.id) for place in entry.deployments)
        ]

    def queued(self, endpoint: EndpointId) -> int:
        """Return how many requests waited there when it was last asked."""
        cluster = self._clusters.get(endpoint)
        return 0 if cluster is None else cluster.queued

    def is_cold(self, endpoint: EndpointId) -> bool:
        """Tell whether it had nothing that could serve when it was last asked."""
        cluster = self._clusters.get(endpoint)
        return cluster is not None and cluster.state is ClusterState.COLD

    def is_new(self, endpoint: EndpointId) -> bool:
        """Tell whether it is a cluster of which no look has shown yet how it stands."""
        cluster = self._clusters.get(endpoint)
        return cluster is not None and cluster.state is ClusterState.UNKNOWN

    def unlisted(self) -> list[EndpointId]:
        """Return the clusters inside that have given no list yet, and might."""
        return [each.name for each in self._silent() if each.zone is not Zone.CLOUD]

    def untold(self) -> list[EndpointId]:
        """Return the clusters of which nobody knows yet what they serve."""
        return [each.name for each in self._silent() if not each.known]

    def __iter__(self) -> Iterator[tuple[EndpointId, ClusterState]]:
        """Iterate over the clusters that have an address, and how they stand."""
        return (
            (name, cluster.state)
            for name, cluster in self._clusters.items()
            if cluster.base_url is not None
        )

    def _silent(self) -> Iterator[_Cluster]:
        return (
            cluster
            for cluster in self._clusters.values()
            if cluster.base_url is not None
            and cluster.listed_at is None
            and cluster.state not in {ClusterState.READY, ClusterState.UNLISTED}
        )

    def _shows(self, name: str, model: str) -> bool:
        endpoint = EndpointId(name)
        return self._clusters[endpoint].base_url is not None and self._lists(endpoint, model)

    def _lists(self, name: EndpointId, model: str) -> bool:
        """Tell whether the cluster's lists have had the model lately."""
        found = self._clusters[name].known.get(model)
        return found is not None and found.missing_s < _LISTED_S

    def _index(self) -> None:
        """Name the models; of the clusters that have one, only those of the innermost zone count.

        Whatever is served inside goes further out by a row only: nobody's list may decide that.
        """
        self._entries = {}
        zones: dict[str, Zone] = {}
        for cluster in sorted(self._clusters.values(), key=_distance):
            zone = cluster.zone
            for found in cluster.known.values():
                model = found.model
                if zones.setdefault(model.id, zone) is not zone:
                    continue
                known = self._entries.get(model.id)
                places = () if known is None else known.deployments
                self._entries[model.id] = ModelEntry(
                    id=ModelName(model.id),
                    created_at=model.created_at if known is None else known.created_at,
                    deployments=(*places, _deployed(model, cluster.name)),
                )


def _state_after(told: Probed) -> ClusterState:
    if told.is_cold:
        return ClusterState.COLD
    if told.is_refused:
        return ClusterState.REFUSED
    return ClusterState.UNLISTED if told.models is None else ClusterState.READY


def _distance(cluster: _Cluster) -> int:
    return _OUTWARD.index(cluster.zone)


def _deployed(model: ServedModel, provider: EndpointId) -> DeploymentEntry:
    return DeploymentEntry(
        provider=provider,
        upstream_name=model.id,
        context_tokens=model.context_tokens,
        base_model=model.base_model,
    )
