"""Model name → candidates, from memory only.

Two indexes answer: one over the catalog, built when its snapshot is swapped, and one over the
agents' models, patched when an agent registers or reports. A request costs two dictionary look-ups,
however many models and endpoints there are. What only clusters serve is looked up after these.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from router.domain import (
    Candidate,
    Catalog,
    Deployment,
    DeploymentEntry,
    Endpoint,
    EndpointId,
    Load,
    ModelEntry,
    ModelName,
    PrefixRule,
    Probed,
    Provider,
    TimeLimits,
    Zone,
)
from router.errors import CircuitOpen, UpstreamBusy
from router.fleet.breaker import Breakers
from router.fleet.candidates import distinct, fit_for, names
from router.fleet.clusters import Clusters
from router.fleet.deployments import Deployments
from router.fleet.listing import ListedModel, list_models
from router.fleet.membership import LeaseState, Membership
from router.fleet.refusals import (
    no_agent,
    not_configured,
    not_pulled,
    unknown_model,
    without_deployment,
)
from router.fleet.rests import Rests
from router.fleet.tenants import Tenants
from router.fleet.waits import Waits
from shared.contracts.agents import AgentModel
from shared.http.errors import ModelNotFound
from shared.http.transport import Timeouts
from shared.kit.clock import monotonic

AGENT_DIALECT = "agent"
# Rows of the registry have 100 unless the user says otherwise: what runs on one's own machine first.
AGENT_PRIORITY = 50

EndpointOf = Callable[[Provider], Endpoint | None]
"""Returns a provider's endpoint with its credential; None if the credential is not there."""


class Resolution(msgspec.Struct, frozen=True):
    """A name's public model id, and who can serve it now (at least one)."""

    model: ModelName
    candidates: tuple[Candidate, ...]


class _Ready(msgspec.Struct, frozen=True):
    """What `resolve` finds for a name that has nothing to do with agents: it changes with the catalog."""

    model: ModelName
    deployments: tuple[Deployment, ...]


# Names that only a prefix rule knows; remembered up to here, since clients may send any.
_MOST_PREFIXED = 1024
_MOST_READY = 65_536


class Fleet:
    """All endpoints that this process knows. Methods never await, so each is atomic."""

    def __init__(
        self,
        membership: Membership,
        endpoint_of: EndpointOf,
        breakers: Breakers | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        self._membership = membership
        self.breakers = Breakers(monotonic) if breakers is None else breakers
        self.rests = Rests(membership.now)
        self.waits = Waits(membership)
        self.clusters = Clusters()
        self.tenants = Tenants()
        self._endpoint_of = endpoint_of
        self._deployments = Deployments(timeouts or Timeouts())
        self._in_flight: dict[EndpointId, int] = {}
        self._agent_index: dict[str, dict[int, AgentModel]] = {}
        self._agent_names: dict[int, tuple[AgentModel, ...]] = {}
        self._gone: frozenset[int] = frozenset()
        self._catalog = Catalog()
        self._entries: dict[str, ModelEntry] = {}
        self._prefixed: dict[str, ModelEntry] = {}
        self._rules: tuple[PrefixRule, ...] = ()
        self._endpoints: dict[str, Endpoint | None] = {}
        # by the row's identity, for a row's hash costs more than all else here; entries keep the rows
        self._built: dict[int, Deployment] = {}
        self._ready: dict[tuple[str, Zone | None, str], _Ready] = {}

    @property
    def catalog(self) -> Catalog:
        """Return the snapshot that requests read."""
        return self._catalog

    @property
    def membership(self) -> Membership:
        """Return the agents and their leases; call `patch` after changing one."""
        return self._membership

    def swap(self, catalog: Catalog) -> None:
        """Put a new snapshot in place of the old one."""
        entries: dict[str, ModelEntry] = {}
        for entry in catalog.models:
            for name in (*entry.aliases, entry.id):
                entries[name] = entry
        self._endpoints = {
            name: self._endpoint_of(provider)
            for name, provider in catalog.providers.items()
            if provider.dialect != AGENT_DIALECT
        }
        self.clusters.keep(
            (each, self._endpoints.get(name)) for name, each in catalog.providers.items()
        )
        self.clusters.forget(catalog.forgotten)
        self.tenants.swap(catalog.keys)
        self._rules = tuple(sorted(catalog.prefix_rules, key=lambda rule: -len(rule.prefix)))
        self._entries = entries
        self._prefixed = {}
        self._built = {}
        self._ready = {}
        self._catalog = catalog

    def patch(self) -> None:
        """Bring the index of agents' models up to date; costs what changed."""
        self._gone = self._membership.gone()
        current = {m.row_id: m.models for m in self._membership if m.row_id not in self._gone}
        self._deployments.forget_agents()
        self._ready = {}
        for row_id, models in list(self._agent_names.items()):
            if current.get(row_id) is not models:
                self._unlist(row_id, models)
        for row_id, models in current.items():
            if row_id not in self._agent_names:
                self._list(row_id, models)
        self.waits.cut_lost()

    def forget_gone(self) -> None:
        """Let the names go that only agents had of which nothing was heard for a day."""
        if self._membership.gone() != self._gone:
            self.patch()

    def learn(self, endpoint: EndpointId, told: Probed) -> None:
        """Take what a probe told of a cluster."""
        if self.clusters.learn(endpoint, told):
            self._built = {}  # by identity, and the rows of before are gone
            self._ready = {}

    def resolve(
        self, name: str, zone: Zone | None = None, path: str = "/chat/completions"
    ) -> Resolution:
        """Return who can serve `name` on the route `path`, confined to `zone` if one is given.

        Raises:
            ModelNotFound: nobody ever heard of it.
            ModelNotPulled: agents know it, but none has its weights.
            AgentUnavailable: it lives on agents of which none is connected.
            ProviderNotConfigured: its provider has no credential here.
            ZoneRefused: candidates exist, but outside the zone.
            UnsupportedApi: candidates exist, but none speaks the API of `path`.
            NoEndpoint: it has no deployment.
            CircuitOpen: all candidates are spared after failures.
            UpstreamBusy: all candidates asked to be left alone for now.
        """
        ready = self._ready.get((name, zone, path))
        if ready is None:
            return self._resolved(name, zone, path)
        candidates = tuple([self._loaded(deployment) for deployment in ready.deployments])
        return Resolution(ready.model, self._rested(self._sound(candidates)))

    def _resolved(self, name: str, zone: Zone | None, path: str) -> Resolution:
        problems: list[Exception] = []
        entry = self._entries.get(name)
        agents = self._agent_index.get(name)
        if entry is None and agents is None:
            entry = self.clusters.entry(name) or self._by_prefix(name)
        found: list[Candidate] = []
        model = name
        if agents:
            model = next(iter(agents.values())).id
            found += self._on_agents(agents, problems)
        if entry is not None:
            model = entry.id
            for row in entry.deployments:
                # what an agent offers is private work: a row of the same name must not send it
                # elsewhere when the agent is away; that takes a name of its own
                if agents is None or self._is_local(row):
                    found += self._of_row(row, problems)
            if agents:
                found = distinct(found)
        if not found:
            raise problems[0] if problems else without_deployment(name)
        fit = fit_for(found, name, zone, path)
        if not problems and not any(c.deployment.endpoint.is_watched for c in found):
            if len(self._ready) >= _MOST_READY:
                self._ready = {}
            self._ready[name, zone, path] = _Ready(
                ModelName(model), tuple(c.deployment for c in fit)
            )
        return Resolution(ModelName(model), self._rested(self._sound(fit)))

    def takes(self, deployment: Deployment) -> bool:
        """Tell whether requests may be sent there now: time has passed since it was resolved."""
        if not self.waits.has(deployment.endpoint):
            return False
        place = deployment.endpoint.id, deployment.upstream_name
        if self.breakers and self.breakers.wait_s(*place) is not None:
            return False
        rest = self.rests.of(*place) if self.rests else None
        return rest is None or not rest.is_binding

    def enter(self, deployment: Deployment) -> None:
        """Count a request that is sent, and tell the breakers; `leave` follows."""
        endpoint = deployment.endpoint.id
        self.breakers.begin(endpoint, deployment.upstream_name)
        self._in_flight[endpoint] = self._in_flight.get(endpoint, 0) + 1

    def leave(self, deployment: Deployment) -> None:
        """Count it as ended."""
        endpoint = deployment.endpoint.id
        left = self._in_flight[endpoint] - 1
        if left:
            self._in_flight[endpoint] = left
        else:
            del self._in_flight[endpoint]

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints without a lease: those of providers with a credential, if they need one."""
        return [endpoint for endpoint in self._endpoints.values() if endpoint is not None]

    def has(self, endpoint: Endpoint) -> bool:
        """Tell whether an endpoint without a lease is there, as it is."""
        return self._endpoints.get(endpoint.id) == endpoint

    def in_flight(self) -> int:
        """Return how many attempts are under way."""
        return sum(self._in_flight.values())

    def answered(self, deployment: Deployment) -> None:
        """Note that a request got its first byte there."""
        endpoint = deployment.endpoint
        self.breakers.answered(endpoint.id, deployment.upstream_name)
        if endpoint.gateway is not None:
            self.clusters.hear(endpoint.id)

    def is_busy(self, endpoint: EndpointId) -> bool:
        """Tell whether an attempt is under way there."""
        return endpoint in self._in_flight

    def models(self) -> list[ListedModel]:
        """Return every model by name: the catalog's, then the agents', then the clusters'."""
        return list_models(self._catalog, self._membership, self.clusters.entries())

    def _is_local(self, row: DeploymentEntry) -> bool:
        provider = self._catalog.providers.get(row.provider)
        return provider is not None and provider.zone is Zone.LOCAL

    def _sound(self, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        """Return the candidates whose breakers let a request through."""
        if not self.breakers:
            return candidates
        waits: list[float] = []
        found: list[Candidate] = []
        for candidate in candidates:
            deployment = candidate.deployment
            wait_s = self.breakers.wait_s(deployment.endpoint.id, deployment.upstream_name)
            if wait_s is None:
                found.append(candidate)
            else:
                waits.append(wait_s)
        if not found:
            raise CircuitOpen(
                "Every endpoint of this model has failed several times in a row, so it is spared for "
                "a moment. Look at the router's log, or: iir doctor",
                retry_after_s=min(waits),
            )
        return tuple(found)

    def _rested(self, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        """Return the candidates that did not ask to be left alone; those that only asked, if all did."""
        if not self.rests:
            return candidates
        rests = [
            self.rests.of(c.deployment.endpoint.id, c.deployment.upstream_name) for c in candidates
        ]
        pairs = list(zip(candidates, rests, strict=True))
        awake = tuple(c for c, rest in pairs if rest is None)
        found = awake or tuple(c for c, rest in pairs if rest is None or not rest.is_binding)
        if not found:
            raise UpstreamBusy(
                "Every endpoint of this model has asked for a pause, which is not over. Ask again then.",
                retry_after_s=min(rest.left_s for rest in rests if rest is not None),
            )
        return found

    def _list(self, row_id: int, models: tuple[AgentModel, ...]) -> None:
        self._agent_names[row_id] = models
        for model in models:
            for name in (model.id, *model.aliases):
                self._agent_index.setdefault(name, {})[row_id] = model

    def _unlist(self, row_id: int, models: tuple[AgentModel, ...]) -> None:
        del self._agent_names[row_id]
        for name in names(models):
            self._agent_index[name].pop(row_id)
            if not self._agent_index[name]:
                del self._agent_index[name]

    def _by_prefix(self, name: str) -> ModelEntry:
        known = self._prefixed.get(name)
        if known is not None:
            return known
        rule = next((rule for rule in self._rules if name.startswith(rule.prefix)), None)
        if rule is None or rule.provider not in self._catalog.providers:
            raise unknown_model(name, self.clusters.untold())
        row = DeploymentEntry(provider=rule.provider, upstream_name=name)
        entry = ModelEntry(id=ModelName(name), deployments=(row,))
        if len(self._prefixed) >= _MOST_PREFIXED:
            self._built, self._prefixed = {}, {}
        self._prefixed[name] = entry
        return entry

    def _of_row(self, row: DeploymentEntry, problems: list[Exception]) -> list[Candidate]:
        provider = self._catalog.providers.get(row.provider)
        if provider is None:
            return []
        if provider.dialect == AGENT_DIALECT:
            agents = self._agent_index.get(row.upstream_name)
            if not agents:
                problems.append(self._unknown_local(row.upstream_name))
                return []
            return self._on_agents(agents, problems, row.priority, row.limits)
        endpoint = self._endpoints.get(row.provider)
        if endpoint is None:
            problems.append(not_configured(provider))
            return []
        deployment = self._built.get(id(row))
        if deployment is None:
            deployment = self._deployments.of_row(row, provider, endpoint)
            self._built[id(row)] = deployment
        return [
            self._loaded(deployment) if endpoint.gateway is None else self._in_cluster(deployment)
        ]

    def _loaded(self, deployment: Deployment) -> Candidate:
        return Candidate(deployment, Load(self._in_flight.get(deployment.endpoint.id, 0)))

    def _in_cluster(self, deployment: Deployment) -> Candidate:
        endpoint = deployment.endpoint.id
        load = Load(self._in_flight.get(endpoint, 0), self.clusters.queued(endpoint))
        return Candidate(deployment, load, is_suspect=self.clusters.is_cold(endpoint))

    def _unknown_local(self, name: str) -> Exception:
        if any(self._membership.state(member).is_routable for member in self._membership):
            return ModelNotFound(
                f"No connected agent knows the model {name!r}. GET /v1/models lists what is there.",
                param="model",
            )
        return no_agent()

    def _on_agents(
        self,
        agents: dict[int, AgentModel],
        problems: list[Exception],
        priority: int = AGENT_PRIORITY,
        limits: TimeLimits = TimeLimits(),
    ) -> list[Candidate]:
        found = []
        for row_id, model in agents.items():
            member = self._membership.get(row_id)
            state = self._membership.state(member) if member else LeaseState.EXPIRED
            if member is None or not state.is_routable:
                problems.append(no_agent())
            elif not model.is_pulled:
                problems.insert(0, not_pulled(model))
            else:
                deployment = self._deployments.of_agent(member, model, priority, limits)
                load = Load(self._in_flight.get(deployment.endpoint.id, 0), member.queued)
                is_suspect = state is LeaseState.SUSPECT
                found.append(Candidate(deployment, load, is_suspect=is_suspect))
        return found
