"""The composition root: everything is built here, once, and handed down."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import anyio
import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess

from router.api.access import Access
from router.api.express import express_lane
from router.api.health import Readiness, health_routes
from router.api.inference import InferenceRoutes
from router.api.models import model_routes
from router.backends import BACKENDS
from router.dispatch.admission import Admission
from router.dispatch.dispatcher import Dispatcher
from router.dispatch.metrics import RouterMetrics
from router.dispatch.retry import RetryBudget
from router.domain import EndpointId, Scope, Zone
from router.fleet.address_follower import AddressFollower
from router.fleet.breaker import BreakerRule, Breakers
from router.fleet.endpoints import ProviderEndpoints
from router.fleet.joining import JoinDesk
from router.fleet.leases import LeaseDesk
from router.fleet.membership import Membership
from router.fleet.prober import Prober
from router.fleet.registry import Fleet
from router.fleet.remembering import ClusterMemory
from router.fleet.sync import RegistrySync
from router.policies import POLICIES
from router.settings import Settings
from router.store.bridge import (
    StoredCluster,
    StoredCredentials,
    StoredLeases,
    StoredModels,
    StoredRegistry,
)
from router.store.errors import Refusal, StoreError
from router.store.first_secrets import FirstSecrets
from router.store.ledger import UsageLedger
from router.store.prepare import prepare
from router.store.reader import RegistryReader
from router.store.writer import RegistryWriter
from shared.http.guard import Guard
from shared.http.later import LoadedLater
from shared.http.lifespan import Lifespan
from shared.http.origin import OriginRules, is_loopback, split_list
from shared.http.plain import PlainRoute, PlainRoutes
from shared.http.serve import PortTaken, bind, run, server_options
from shared.http.transport import Transport
from shared.http.transports import make_transport
from shared.kit.clock import Clock, monotonic
from shared.kit.logs import configure_logs, get_logger
from shared.kit.memory import settle
from shared.kit.run_file import announced

if TYPE_CHECKING:
    from fastapi import FastAPI

FRAMEWORK_PATHS = ("/internal/", "/docs", "/docs/", "/openapi.json", "/errors/")
"""What FastAPI serves, and below what."""
_FLUSH_S = 0.5
_PROBE_SPARED_S = 0.5
_LOOP_S = 0.1
_GOODBYE_S = 1.5
_FIRST_LOOK_S = 2.0


class Router:
    """One router process: its parts, and what runs beside requests."""

    def __init__(
        self,
        settings: Settings,
        *,
        transport: Transport | None = None,
        clock: Clock = monotonic,
        epoch: str | None = None,
    ) -> None:
        """Build everything; processes that serve together share an `epoch`."""
        self.settings = settings
        self.clock = clock
        self.transport: Transport = transport or make_transport(settings.router_transport)
        endpoints = ProviderEndpoints(settings)
        self.fleet = Fleet(
            Membership(clock, settings.router_lease_ttl_s),
            endpoints,
            Breakers(clock, BreakerRule(failures=settings.router_breaker_failures)),
            settings.timeouts,
        )
        self.admission = Admission(
            clock,
            most_waiting=settings.router_queue,
            longest_s=settings.router_queue_s,
            processes=settings.web_concurrency,
        )
        tenant_of = self.fleet.tenants.of
        self.backends = {name: BACKENDS[name](self.transport, tenant_of) for name in BACKENDS}
        self.prober = Prober(self.fleet, self.backends)
        self.writer = RegistryWriter(settings.store_url)
        self.sync = RegistrySync(self.fleet, StoredRegistry(RegistryReader(settings.store_url)))
        row = StoredCluster(self.writer)
        self.address = AddressFollower(settings, endpoints, self.fleet, row)
        self.memory = ClusterMemory(self.fleet, StoredModels(self.writer))
        self.metrics = RouterMetrics(self.fleet)
        self.ledger = UsageLedger(self.writer, zone_of=self._zone_of)
        self._show_gauges()
        self.readiness = Readiness()
        self._framework: LoadedLater | None = None
        self.desk = LeaseDesk(
            self.fleet,
            StoredLeases(self.writer),
            ttl_s=settings.router_lease_ttl_s,
            renew_s=settings.router_lease_renew_s,
            allowed_addresses=split_list(settings.router_agent_hosts),
            epoch=epoch or make_epoch(),
        )
        self.joins = JoinDesk(StoredCredentials(self.writer), self.sync.look, clock)
        self._log = get_logger("router")
        self._leases_wait = False

    def dispatcher(self) -> Dispatcher:
        """Return the dispatcher over all backends."""
        settings = self.settings
        rng = Random()  # noqa: S311 - spreads load, guards nothing
        return Dispatcher(
            fleet=self.fleet,
            policy=POLICIES[settings.router_policy](rng),
            backends=self.backends,
            sinks=(self.metrics, self.ledger),
            clock=self.clock,
            admission=self.admission,
            budget=RetryBudget(share=settings.router_retry_share),
            max_attempts=settings.router_attempts,
            deadline_s=settings.router_deadline_s,
        )

    def _show_gauges(self) -> None:
        show = self.metrics
        show.gauge(
            "iir_queued", "Requests that wait for an endpoint", lambda: self.admission.waiting
        )
        show.gauge("iir_places_taken", "Places of limited endpoints", lambda: self.admission.taken)
        show.gauge("iir_ledger_waiting", "Ledger rows not written yet", lambda: self.ledger.waiting)
        show.counter(
            "iir_ledger_dropped", "Ledger rows that found no room", lambda: self.ledger.dropped
        )
        show.gauge(
            "iir_event_loop_tasks", "Tasks of the event loop", lambda: len(asyncio.all_tasks())
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Bring the registry up to date, load it, and follow it until the end."""
        is_llmds = await asyncio.get_running_loop().run_in_executor(
            None, prepare_registry, self.settings
        )
        if not is_llmds:
            self.address.warn_of_row()
        await self.address.catch_up()
        await self.sync.load()
        await self.memory.load()
        if self.settings.router_probe_s:
            with anyio.move_on_after(_FIRST_LOOK_S):
                await self.prober.look_at_new()
        self.memory.warn()
        self.readiness.is_loaded = True
        if self._framework is not None and any(
            key.agent for key in self.fleet.catalog.keys.values()
        ):
            self._framework.load()  # agents will ask for it at once, and do not wait for long
        try:
            async with anyio.create_task_group() as tasks:
                poll_s = self.settings.router_catalog_poll_s
                tasks.start_soon(self._repeat, poll_s, self._follow)
                tasks.start_soon(self._repeat, poll_s, self.address.look)
                tasks.start_soon(self._repeat, _FLUSH_S, self._flush)
                tasks.start_soon(self._watch_loop)
                tasks.start_soon(self._repeat, _PROBE_SPARED_S, self.prober.look_at_silent)
                if probe_s := self.settings.router_probe_s:
                    tasks.start_soon(self._repeat, probe_s, self.prober.look)
                    often_s = min(_PROBE_SPARED_S, probe_s)
                    tasks.start_soon(self._repeat, often_s, self.prober.look_at_spared)
                yield
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._until_quiet()
                await self._flush()
                await self.sync.close()
                await self.transport.aclose()
            self.writer.close()

    async def _repeat(self, pause_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await anyio.sleep(pause_s)
            try:
                await work()
            except Exception as exc:  # noqa: BLE001 - a defect here must not take requests down
                self._log.exception("background_work_failed", kind=type(exc).__name__)

    async def _watch_loop(self) -> None:
        while True:
            due = self.clock() + _LOOP_S
            await anyio.sleep(_LOOP_S)
            self.metrics.loop_was_late(max(self.clock() - due, 0.0))

    async def _follow(self) -> None:
        before = self.sync.failures
        await self.sync.look()
        self.fleet.forget_gone()
        self.fleet.waits.cut_lost()
        self.readiness.registry = self.sync.problem or "ok"
        self.metrics.registry_errors += self.sync.failures - before

    async def _until_quiet(self) -> None:
        """Let requests that were cut say goodbye, so that their rows are written."""
        with anyio.move_on_after(_GOODBYE_S):
            while self.fleet.in_flight():  # noqa: ASYNC110 - a few turns at the very end
                await anyio.sleep(0.01)

    async def _flush(self) -> None:
        # a transaction goes on when its caller is cancelled: what it wrote must be ticked off
        with anyio.CancelScope(shield=True):
            try:
                await self.desk.flush()
                self._leases_wait = False
            except OSError as exc:
                if not self._leases_wait:  # once per outage: this comes twice a second
                    self._log.warning("leases_not_saved", reason=str(exc))
                self._leases_wait = True
            await self.joins.flush()
            await self.memory.flush()
            await self.ledger.flush()

    def drain(self) -> None:
        """Tell load balancers to send nothing new; called when the process is told to stop."""
        self.readiness.is_draining = True

    def asgi(self) -> ASGIApp:
        """Return the application, with every layer around it."""
        settings = self.settings
        rules = OriginRules(
            settings.router_host,
            "Add it to ROUTER_ALLOWED_HOSTS.",
            split_list(settings.router_allowed_hosts),
            split_list(settings.router_cors_origins),
        )
        access = Access(self.fleet, rules, split_list(settings.router_public_routes))
        plain = PlainRoutes(
            self.plain_routes(),
            access=access,
            build=partial(self.control_app, access),
            paths=FRAMEWORK_PATHS,
        )
        self._framework = plain.framework
        routes = InferenceRoutes(
            Lifespan(plain, self.running),
            access=access,
            dispatcher=self.dispatcher(),
            metrics=self.metrics,
            keep_alive_s=settings.router_keep_alive_s,
            max_body_bytes=settings.router_max_body_mb * 1024 * 1024,
        )
        guarded = Guard(routes, rules=rules, clock=self.clock)
        guarded.lane = express_lane(guarded, routes, self.transport)
        if not rules.allowed_origins:
            return guarded
        from router.api.cors import Pages  # noqa: PLC0415 - loads half a framework

        return Pages(guarded, rules)

    def plain_routes(self) -> Sequence[PlainRoute[Scope | None]]:
        """Return what is served in front of FastAPI, inference aside."""
        health = health_routes(self.fleet, self.readiness, self.metrics.registry)
        return (*health, *model_routes(self.fleet))

    def control_app(self, access: Access) -> FastAPI:
        """Return what FastAPI serves: agents, and the documentation of all routes."""
        from router.api.control import control_app  # noqa: PLC0415 - see `LoadedLater`

        return control_app(self.desk, self.joins, access, self.plain_routes())

    def _zone_of(self, endpoint: EndpointId) -> Zone | None:
        provider = self.fleet.catalog.providers.get(endpoint)
        return provider.zone if provider is not None else Zone.LOCAL


def create_app(
    settings: Settings, *, transport: Transport | None = None, epoch: str | None = None
) -> ASGIApp:
    """Return the router as an ASGI application; nothing is opened before its start."""
    return Router(settings, transport=transport, epoch=epoch).asgi()


def prepare_registry(settings: Settings) -> bool:
    """Bring the registry up to date; a cluster that the settings name gets its row.

    Returns:
        False if they name one whose row is another dialect's, so that the setting is of no use.

    Raises:
        StoreError: the registry can't be read or written.
    """
    is_set = settings.llmd_endpoint is not None
    return prepare(settings.store_url, has_cluster=is_set) or not is_set


def make_epoch() -> str:
    """Return what tells one start of the router from every other."""
    return secrets.token_hex(8)


def serve(settings: Settings) -> None:
    """Serve until told to stop.

    Raises:
        SystemExit: the router can't or must not serve like this; the reason is on stderr.
    """
    configure_logs(level=settings.log_level, json=settings.log_json)
    try:
        prepare_registry(settings)
        _make_first_secrets(settings)
        _refuse_open_network(settings)
        listener = bind(settings.router_host, settings.router_port)
    except StoreError as exc:
        raise SystemExit(f"iir: {exc}") from exc
    except PortTaken as exc:
        raise SystemExit(f"iir: {exc} Set ROUTER_PORT to another one.") from exc
    except OSError as exc:
        raise SystemExit(f"iir: can't listen on {settings.router_host}: {exc.strerror}") from exc
    run_file = settings.iir_home / "run" / "router.json"
    with announced(run_file, host=settings.router_host, port=listener.getsockname()[1]):
        if settings.web_concurrency > 1:
            _serve_workers(settings, listener)
            return
        router = Router(settings)
        drain_s = settings.router_drain_s
        run(router.asgi(), listener, drain_s=lambda: drain_s, on_exit=router.drain)


def _serve_workers(settings: Settings, listener: socket.socket) -> None:
    """Serve from several processes, which share the listener and agree through the registry."""
    config = uvicorn.Config(
        partial(_worker_app, settings, make_epoch()),
        factory=True,
        workers=settings.web_concurrency,
        **server_options(drain_s=settings.router_drain_s),  # type: ignore[arg-type] # uvicorn's own
    )
    Multiprocess(config, sockets=[listener]).run()


def _worker_app(settings: Settings, epoch: str) -> ASGIApp:
    """Return one worker's application; runs in the worker's process, which has no log yet."""
    configure_logs(level=settings.log_level, json=settings.log_json)
    app = create_app(settings, epoch=epoch)
    settle()
    return app


def _make_first_secrets(settings: Settings) -> None:
    """Make the key and the agent's credential that the settings ask for."""
    log = get_logger("router")
    key_file, token_file = settings.router_key_file, settings.router_agent_token_file
    with closing(FirstSecrets(settings.store_url)) as first:
        if key_file is not None and first.make_key(key_file):
            log.info("first_key_made", next_step="it lies in ROUTER_KEY_FILE")
        if token_file is not None:
            try:
                first.admit_local_agent(token_file)
            except Refusal as refusal:
                log.warning("local_agent_refused", reason=str(refusal))


def _refuse_open_network(settings: Settings) -> None:
    """Refuse to offer an open router to a network."""
    if is_loopback(settings.router_host):
        return
    reader = RegistryReader(settings.store_url)
    try:
        catalog = reader.catalog()
    finally:
        reader.close()
    if catalog is None or catalog.is_open:
        raise SystemExit(
            f"iir: refusing to listen on {settings.router_host} without an API key: everybody on the "
            "network could use it. Make a key first: iir keys create --name NAME"
        )
