"""Asks endpoints whether they answer, before a request has to find out.

It asks those that hold no lease, and agents where so many fell silent that silence tells nothing. An
endpoint that can't be reached loses its traffic after as many misses as requests would need, and
gets it back with the first answer, however long its breaker would have stayed open. Those in a cloud
are asked only while their breaker is open: their operators count requests; clusters are asked always,
since nobody else tells which models they serve. Others that are spared are
asked more often: who was restarted is to serve again within a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import anyio

from router.domain import Endpoint, EndpointId, Gateway, Probed, Zone
from router.errors import PodUnreachable
from router.fleet.deployments import agent_endpoint
from router.fleet.membership import Member
from router.fleet.registry import Fleet
from router.ports import Backend
from shared.http.errors import ApiError, UpstreamTimeout
from shared.kit.logs import get_logger

_AT_ONCE = 16


class Prober:
    """Looks at all endpoints without a lease; `look` is to be called from time to time."""

    def __init__(self, fleet: Fleet, backends: Mapping[str, Backend]) -> None:
        """Ask through `backends`, by dialect."""
        self._fleet = fleet
        self._backends = backends
        self._silent: set[EndpointId] = set()
        self._locked: set[EndpointId] = set()
        self._mute: set[EndpointId] = set()
        self._log = get_logger("prober")

    async def look(self) -> None:
        """Ask each endpoint once, some at a time."""
        self._silent &= {each.id for each in self._fleet.endpoints()}
        await self._ask_all([each for each in self._fleet.endpoints() if self._is_due(each)])

    async def look_at_spared(self) -> None:
        """Ask those that get no requests, but for those in a cloud, and clusters that are new."""
        spared = [
            each
            for each in self._fleet.endpoints()
            if (each.zone is not Zone.CLOUD and self._is_spared(each)) or self._is_new(each)
        ]
        if spared:
            await self._ask_all(spared)

    async def look_at_new(self) -> None:
        """Ask the clusters that were never asked: until then nobody knows what they serve."""
        new = [each for each in self._fleet.endpoints() if self._is_new(each)]
        if new:
            await self._ask_all(new)

    async def look_at_silent(self) -> None:
        """Ask the agents that are not taken for lost only because so many are silent at once."""
        doubtful = self._fleet.membership.doubtful()
        if not doubtful:
            return
        self._log.warning("router_doubts_itself", silent_agents=len(doubtful))
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        async with anyio.create_task_group() as group:
            for member in doubtful:
                group.start_soon(self._vouch, limiter, member)

    async def _vouch(self, limiter: anyio.CapacityLimiter, member: Member) -> None:
        endpoint = agent_endpoint(member)
        async with limiter:
            try:
                # an agent that started anew takes another credential
                is_there = (await self._backends[endpoint.backend].probe(endpoint)).is_accepted
            except ApiError:
                is_there = False
        self._fleet.membership.vouch(member, is_there=is_there)

    async def _ask_all(self, endpoints: Sequence[Endpoint]) -> None:
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        async with anyio.create_task_group() as group:
            for endpoint in endpoints:
                group.start_soon(partial(self._ask, limiter, endpoint))

    def _is_due(self, endpoint: Endpoint) -> bool:
        is_free = endpoint.zone is not Zone.CLOUD or endpoint.gateway is not None
        return endpoint.backend in self._backends and (is_free or self._is_spared(endpoint))

    def _is_new(self, endpoint: Endpoint) -> bool:
        return endpoint.backend in self._backends and self._fleet.clusters.is_new(endpoint.id)

    def _is_spared(self, endpoint: Endpoint) -> bool:
        return endpoint.backend in self._backends and self._fleet.breakers.is_spared(endpoint.id)

    async def _ask(self, limiter: anyio.CapacityLimiter, endpoint: Endpoint) -> None:
        async with limiter:
            told: Probed | ApiError
            try:
                told = await self._backends[endpoint.backend].probe(endpoint)
            except ApiError as error:
                told = error
        if not self._fleet.has(endpoint):
            return  # it has moved or is gone meanwhile: of what is there now that tells nothing
        if isinstance(told, ApiError):
            self._note_silence(endpoint, told)
        else:
            self._note_answer(endpoint, told)

    def _note_silence(self, endpoint: Endpoint, error: ApiError) -> None:
        if isinstance(error, PodUnreachable):
            self._fleet.breakers.answer(endpoint.id)  # it was the gateway that said so
            self._fleet.clusters.doubt(endpoint.id)
            return
        if isinstance(error, UpstreamTimeout) and self._is_at_work(endpoint):
            return
        self._fleet.breakers.miss(endpoint.id)
        self._fleet.clusters.miss(endpoint.id)
        if endpoint.id not in self._silent:
            self._silent.add(endpoint.id)
            self._log.warning("endpoint_silent", endpoint=endpoint.id, reason=error.code)

    def _is_at_work(self, endpoint: Endpoint) -> bool:
        """Tell whether it may have had no time for a look.

        Engines of a single thread answer nobody else while they work. Gateways do, but the pod that one
        picked for the look may not: so other answers count that came since the last look.
        """
        if endpoint.gateway is None:
            return self._fleet.is_busy(endpoint.id)
        return self._fleet.clusters.was_heard(endpoint.id)

    def _note_answer(self, endpoint: Endpoint, told: Probed) -> None:
        self._fleet.breakers.answer(endpoint.id)
        if endpoint.gateway is not None:
            self._fleet.learn(endpoint.id, told)
            self._note_metrics(endpoint.id, told, endpoint.gateway)
            self._note_credential(endpoint.id, is_refused=told.is_refused)
        if endpoint.id in self._silent:
            self._silent.discard(endpoint.id)
            self._log.info("endpoint_answers_again", endpoint=endpoint.id)

    def _note_metrics(self, endpoint: EndpointId, told: Probed, gateway: Gateway) -> None:
        """Say once when the metrics that were asked for are not there."""
        if gateway.metrics_url is None or told.queued is not None:
            self._mute.discard(endpoint)
        elif endpoint not in self._mute:
            self._mute.add(endpoint)
            self._log.warning(
                "cluster_metrics_unread", endpoint=endpoint, setting="LLMD_METRICS_URL"
            )

    def _note_credential(self, endpoint: EndpointId, *, is_refused: bool) -> None:
        """Say once when a cluster does not take the router's credential, and when it does again."""
        if is_refused and endpoint not in self._locked:
            self._locked.add(endpoint)
            self._log.warning(
                "cluster_credential_refused", endpoint=endpoint, next_step="iir doctor"
            )
        elif not is_refused and endpoint in self._locked:
            self._locked.discard(endpoint)
            self._log.info("cluster_credential_accepted", endpoint=endpoint)
