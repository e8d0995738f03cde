"""Deployments as requests need them, built when the registry or an agent changes, not per request."""

from __future__ import annotations

from dataclasses import replace

from router.domain import (
    LLMD,
    Deployment,
    DeploymentEntry,
    Endpoint,
    EndpointId,
    Provider,
    TimeLimits,
    Zone,
)
from router.fleet.membership import Member
from shared.contracts.agents import AgentModel, Registration
from shared.contracts.apis import APIS, DEFAULT_APIS, paths_of
from shared.http.transport import Timeouts

_OF_AGENT = "agent:"
_Key = tuple[int, str, int, TimeLimits]


class Deployments:
    """Builds deployments; remembers those of agents for as long as they say the same."""

    def __init__(self, timeouts: Timeouts) -> None:
        """Take the time limits of deployments that have none of their own."""
        self._timeouts = timeouts
        self._of_agents: dict[_Key, tuple[Registration, AgentModel, Deployment]] = {}

    def of_row(self, row: DeploymentEntry, provider: Provider, endpoint: Endpoint) -> Deployment:
        """Return the deployment of a registry row on its provider's endpoint."""
        timeouts = self._limited(row.limits, endpoint.timeouts)
        return Deployment(
            endpoint=endpoint,
            upstream_name=row.upstream_name,
            priority=row.priority,
            weight=row.weight,
            context_tokens=row.context_tokens,
            capabilities=row.capabilities,
            paths=paths_of(_default_apis(provider) if provider.apis is None else provider.apis),
            timeouts=timeouts,
            stream_timeouts=replace(timeouts, total_s=row.limits.total_s),
            pool=endpoint.id,
            max_in_flight=provider.max_in_flight,
            objective=row.objective,
            base_model=row.base_model,
            slo=row.slo,
        )

    def of_agent(
        self, member: Member, model: AgentModel, priority: int, limits: TimeLimits
    ) -> Deployment:
        """Return the deployment of a model on its agent."""
        key = (member.row_id, model.id, priority, limits)
        known = self._of_agents.get(key)
        if known is not None and known[0] is member.registration and known[1] is model:
            return known[2]
        made = self._on_agent(member, model, priority, limits)
        self._of_agents[key] = member.registration, model, made
        return made

    def forget_agents(self) -> None:
        """Drop what is remembered: agents came, went or changed."""
        self._of_agents.clear()

    def _on_agent(
        self, member: Member, model: AgentModel, priority: int, limits: TimeLimits
    ) -> Deployment:
        endpoint = agent_endpoint(member)
        timeouts = self._limited(limits)
        return Deployment(
            endpoint=endpoint,
            upstream_name=model.id,
            priority=priority,
            context_tokens=model.context_tokens,
            capabilities=model.capabilities,
            paths=paths_of(DEFAULT_APIS if model.apis is None else model.apis),
            timeouts=timeouts,
            stream_timeouts=replace(timeouts, total_s=limits.total_s),
            pool=f"{endpoint.id}/{model.id}",
            max_in_flight=model.max_in_flight,
            is_loaded=model.status == "loaded",
        )

    def _limited(self, limits: TimeLimits, own: Timeouts | None = None) -> Timeouts:
        default = own or self._timeouts
        return Timeouts(
            connect_s=limits.connect_s or default.connect_s,
            first_byte_s=limits.first_byte_s or default.first_byte_s,
            idle_s=limits.idle_s or default.idle_s,
            total_s=limits.total_s or default.total_s,
        )


def _default_apis(provider: Provider) -> tuple[str, ...]:
    """Return what a provider speaks that does not say: pickers of llm-d and vLLM behind them know all."""
    return APIS if provider.dialect == LLMD else DEFAULT_APIS


def agent_endpoint(member: Member) -> Endpoint:
    """Return an agent as the endpoint that requests go to."""
    return Endpoint(
        id=agent_endpoint_id(member.name),
        base_url=f"{member.registration.base_url}/v1",
        backend="openai",
        zone=Zone.LOCAL,
        credential=member.registration.access_token,
        incarnation=member.registration.incarnation,
    )


def agent_endpoint_id(name: str) -> EndpointId:
    """Return the endpoint of the agent with this name."""
    return EndpointId(_OF_AGENT + name)


def agent_name(endpoint: EndpointId) -> str:
    """Return the name of the agent that is this endpoint."""
    return endpoint.removeprefix(_OF_AGENT)
