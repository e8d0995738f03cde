"""The composition root: everything is built here, once, and handed down."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from starlette.types import ASGIApp

from local_agent.api.access import AgentAccess, Need
from local_agent.api.express import guarded
from local_agent.api.metrics import agent_metrics
from local_agent.api.proxy import InferenceRoutes, Proxy
from local_agent.api.reading import health_routes, model_routes
from local_agent.config import AgentConfig
from local_agent.config_file import ConfigError, to_deployments
from local_agent.control.credential import is_exposed, is_same_router, load_credential
from local_agent.control.identity import IdentityTaken, hold_identity, load_identity
from local_agent.control.lease import LeaseClient
from local_agent.control.subject import AgentSubject
from local_agent.control.trust import CaFileUnusable
from local_agent.domain import ModelId, WorkerEvent
from local_agent.engines import ENGINES
from local_agent.host.prober import TransportProber
from local_agent.intake import Intake, IntakeState
from local_agent.lifecycle import FailureRule
from local_agent.listening import DEFAULT_PORT, listen, own_url
from local_agent.memory.budget import use_config
from local_agent.memory.meter import Meter
from local_agent.memory.reading import MachineWatch
from local_agent.memory.remembered import Memo
from local_agent.power_care import care_for
from local_agent.pulls.jobs import PullJobs
from local_agent.pulls.puller import Pulled, needed, to_remove
from local_agent.pulls.unasked import UnaskedPulls
from local_agent.reloading import Changes, Reloader, Taken, compare
from local_agent.settings import AgentSettings
from local_agent.supervisor import Supervisor
from local_agent.this_host import (
    drain_limit_s,
    model_puller,
    read_config,
    refuse_unreachable,
    router_client,
    secret_mask,
    this_host,
    worker_launcher,
)
from local_agent.weights.progress import OnProgress
from local_agent.weights.store import WeightStore
from local_agent.worker import Limits, Surroundings
from shared.http.lifespan import Lifespan
from shared.http.origin import OriginRules
from shared.http.plain import PlainRoute, PlainRoutes
from shared.http.serve import PortTaken, run
from shared.http.transport import Timeouts
from shared.http.transports import make_transport
from shared.kit.clock import monotonic, wall_time
from shared.kit.logs import configure_logs, get_logger
from shared.kit.run_file import announced

if TYPE_CHECKING:
    from fastapi import FastAPI

FRAMEWORK_PATHS = ("/internal/", "/errors/")
"""Below what FastAPI serves."""
_MAX_BODY_BYTES = 32 * 1024 * 1024
# An engine on this machine answers a connect at once, or is gone.
_TIMEOUTS = Timeouts(connect_s=2.0, first_byte_s=600.0, idle_s=120.0)
# llama.cpp ends within 1.2 s; the whole agent has to be gone within 5 s of a Ctrl-C.
_LIMITS = Limits(stop_grace_s=2.5)
_RULE = FailureRule()
_DEFECT_PAUSE_S = 10.0
_OTHER_NAME = "Ask by the agent's address, or set AGENT_URL to the URL with this name."
_TAKEN = "an agent with this IIR_HOME runs already. Stop it, or set IIR_HOME to another folder."


class Agent:
    """One agent process: its parts, and what runs beside requests."""

    def __init__(
        self,
        settings: AgentSettings,
        config: AgentConfig,
        port: int,
        *,
        limits: Limits = _LIMITS,
        rule: FailureRule = _RULE,
    ) -> None:
        self.settings = settings
        self._port = port
        self._log = get_logger("agent")
        self._transport = make_transport(settings.agent_transport)
        self._weights = WeightStore(settings.models_dir)
        self._taken = Taken(config, to_deployments(config, self._weights))
        rng = Random()  # noqa: S311 - spreads waits, guards nothing
        self.identity = load_identity(settings.iir_home / "agent", settings.agent_name, wall_time)
        self._mask = secret_mask(settings, self.identity.access_token)
        self._host = this_host(settings)
        self.supervisor = self._build_supervisor(limits, rule, rng)
        self.intake = Intake(self.supervisor.notify)
        self._puller = model_puller(settings, self.identity.agent_id)
        self.pulls = PullJobs(self._pull, self.supervisor.pull_marks, self._look_again)
        self._unasked = UnaskedPulls(settings.pulled, self.supervisor, self.pulls)
        self._memo = Memo(settings.memory_path, self.supervisor.residency.remembered)
        self._use_taken()
        self._reloader = Reloader(
            settings.config_path, read=partial(read_config, settings), take=self._take
        )
        self._meter = Meter(self.supervisor.workers, self.supervisor.residency.measured)
        self._machine = MachineWatch(self.supervisor.told_memory, self.supervisor.awaits_memory)
        self._subject = self._build_subject()
        self._router = router_client(settings)
        self.lease = LeaseClient(
            client=self._router,
            agent_id=self.identity.agent_id,
            credential=self._credential,
            subject=self._subject,
            rng=rng,
        )
        self._power = care_for(
            self._host,
            self.intake,
            self.supervisor,
            lambda: self._taken.config.power.policy,
            router=self.lease,
            env=settings.environment(),
        )
        self._is_ready = False

    def _build_subject(self) -> AgentSubject:
        settings = self.settings
        return AgentSubject(
            self.supervisor,
            self.identity,
            self.intake,
            base_url=settings.agent_url or own_url(settings.agent_host, self._port),
            engines=tuple(ENGINES),
            labels=lambda: self._taken.config.labels,
            power=lambda: self._power.power,
        )

    def _build_supervisor(self, limits: Limits, rule: FailureRule, rng: Random) -> Supervisor:
        return Supervisor(
            engines=ENGINES,
            host=self._host,
            around=Surroundings(
                launcher=worker_launcher(self.settings, self.identity.agent_id, self._mask),
                prober=TransportProber(self._transport),
                clock=monotonic,
                rng=rng,
                limits=limits,
                rule=rule,
            ),
            drain_s=self.drain_s,
            on_event=self._on_event,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry the workers and the lease until the end; then no process is left."""
        run_file = self.settings.iir_home / "run" / "agent.json"
        with announced(run_file, host=self.settings.agent_host, port=self._port):
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._supervise)
                    tasks.start_soon(self._hold_lease)
                    tasks.start_soon(self._meter.run)
                    tasks.start_soon(self._machine.run)
                    tasks.start_soon(self._memo.run)
                    tasks.start_soon(self._reloader.run)
                    tasks.start_soon(self._unasked.run)
                    tasks.start_soon(self._power.run)
                    self._is_ready = True
                    yield
                    self._is_ready = False
                    self._reloader.end()
                    await self.pulls.aclose()
                    await self.lease.release()
                    await self.supervisor.drain_and_stop(0)
                    await anyio.to_thread.run_sync(self._memo.save)
                    tasks.cancel_scope.cancel()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._router.aclose()
                    await self._transport.aclose()

    def _credential(self) -> str | None:
        """Read the credential, and turn to the router that it is for.

        A `ROUTER_URL` that somebody set beats the file's: it may be another way to that router.
        """
        found = load_credential(self.settings.token_path)
        if found is None:
            return None
        url = found.router_url
        is_told = "router_url" in self.settings.model_fields_set
        if url is not None and not is_told and not is_same_router(str(self._router.base_url), url):
            self._router.base_url = url
            self._log.info("router_chosen", source="credential")
        return found.secret

    def _standing(self) -> dict[str, str]:
        """Return how the agent stands with its router and its file, and what is in the way."""
        standing = {"lease": self.lease.status.value, "config": self._reloader.problem or "ok"}
        if self.lease.problem is not None:
            standing["lease_problem"] = self.lease.problem
        return standing

    def drain(self) -> None:
        """Say that nothing new should come; called when the process is told to stop."""
        self._is_ready = False
        self.pulls.stop()
        self.intake.close()

    async def _supervise(self) -> None:
        """Carry the workers; an agent that can't is ended, and whoever runs it starts it anew."""
        try:
            await self._machine.look()  # before anything is loaded
            await self.supervisor.run()
        except Exception:  # noqa: BLE001 - whatever it is, nothing is carried any more
            self._log.exception("supervisor_failed")
            signal.raise_signal(signal.SIGTERM)

    async def _hold_lease(self) -> None:
        """Hold the lease; a defect there must not end what local clients use."""
        if is_exposed(self.settings.token_path):
            self._log.warning("credential_readable_by_others", next_step="iir-agent rotate")
        while True:
            try:
                await self.lease.run()
            except Exception:  # noqa: BLE001 - whatever it is, it is logged and tried again
                self._log.exception("lease_failed")
            else:
                return
            await anyio.sleep(_DEFECT_PAUSE_S)

    @property
    def drain_s(self) -> float:
        """Return how long a stopping worker, or the agent itself, lets requests finish."""
        return drain_limit_s(self.settings, self._taken.config)

    def _take(self, config: AgentConfig) -> Changes:
        self.supervisor.host = self._host = this_host(self.settings)  # engines are installed now
        before, self._taken = self._taken, Taken(config, to_deployments(config, self._weights))
        self._use_taken()
        is_set = "agent_drain_s" in self.settings.model_fields_set
        overridden = {"drain_s": "AGENT_DRAIN_S"} if is_set else {}
        return compare(before, self._taken, overridden=overridden)

    def _use_taken(self) -> None:
        config, residency = self._taken.config, self.supervisor.residency
        self.pulls.keep({ModelId(model.id) for model in config.models})
        use_config(residency, self._host, config)
        self.supervisor.drain_s = self.drain_s
        self.supervisor.set_desired(self._taken.deployments)

    def _look_again(self) -> None:
        """Take the weights that are there now."""
        config = self._taken.config
        self._taken = Taken(config, to_deployments(config, self._weights))
        self.supervisor.set_desired(self._taken.deployments)

    async def _pull(self, model: ModelId, on_progress: OnProgress) -> Pulled:
        wanted = needed(self._taken.config, self._weights, self._host, model)
        return await self._puller.pull(wanted, on_progress)

    async def _remove(self, model: ModelId) -> bool:
        wanted = to_remove(self._taken.config, self._weights, self._host, model)
        is_removed = await self._puller.remove(wanted)
        self._look_again()
        return is_removed

    async def _examine(self) -> list[dict[str, Any]]:
        """Return what `iir-agent doctor` finds, in the environment of this process."""
        urls = (own_url(self.settings.agent_host, self._port),)

        def found() -> list[dict[str, Any]]:
            from local_agent.doctor.examine import examine  # noqa: PLC0415 - rare, slow to load

            return [asdict(finding) for finding in examine(self.settings, urls)]

        return await anyio.to_thread.run_sync(found, abandon_on_cancel=True)

    def asgi(self) -> ASGIApp:
        """Return the application, with every layer around it."""
        rules = OriginRules(self.settings.agent_host, _OTHER_NAME, self.settings.own_hosts)
        access = AgentAccess(rules, self.identity.access_token, self.settings.public_routes)
        plain = PlainRoutes(
            self.plain_routes(),
            access=access,
            build=partial(self.control_app, access),
            paths=FRAMEWORK_PATHS,
        )
        routes = InferenceRoutes(
            Lifespan(plain, self.running),
            proxy=Proxy(
                self.supervisor,
                self._transport,
                timeouts=_TIMEOUTS,
                load_wait_s=self.settings.agent_load_wait_s,
            ),
            access=access,
            intake=self.intake,
            max_body_bytes=_MAX_BODY_BYTES,
            keep_alive_s=self.settings.agent_keep_alive_s,
        )
        return guarded(routes, self._transport, rules=rules, clock=monotonic)

    def plain_routes(self) -> Sequence[PlainRoute[Need]]:
        """Return what is served in front of FastAPI, inference aside."""
        metrics = agent_metrics(self.supervisor)
        return (
            *model_routes(self.supervisor, self.identity.incarnation // 1000),
            *health_routes(self._status, self._standing, metrics),
        )

    def control_app(self, access: AgentAccess) -> FastAPI:
        """Return what FastAPI serves: what the agent is told to do."""
        from local_agent.api import framework as web  # noqa: PLC0415 - see `LoadedLater`

        logs = self.settings.iir_home / "logs"
        routers = (
            web.control_routes(self.supervisor, self._reloader.reload, self._examine, self.pulls),
            web.pull_routes(self.supervisor, self.pulls, self._remove),
            web.residency_routes(self.supervisor),
            web.capacity_routes(self.intake, self._subject),
            web.event_routes(self.supervisor, self.intake),
            web.log_routes(self.supervisor, self.intake, logs, self._mask),
        )
        return web.control_app(access, routers)

    def _status(self) -> str:
        """Return how the agent is, in a word; `ready` means that it takes requests."""
        intake = self.intake.state
        return "starting" if intake is IntakeState.READY and not self._is_ready else intake.value

    def _on_event(self, event: WorkerEvent) -> None:
        self._log.info(
            "worker",
            worker=event.worker,
            before=event.from_state.value,
            state=event.to_state.value,
            reason=event.reason,
            request_id=event.request_id,
        )


def create_app(settings: AgentSettings) -> ASGIApp:
    """Return the agent as an ASGI application; no process is started before its start.

    Raises:
        ConfigError: the YAML file is not valid.
        OSError: `IIR_HOME` can't be written.
    """
    config = read_config(settings)
    return Agent(settings, config, settings.agent_port or DEFAULT_PORT).asgi()


def serve(settings: AgentSettings) -> None:
    """Serve until told to stop.

    Raises:
        SystemExit: the agent can't or must not serve like this; the reason is on stderr.
    """
    configure_logs(level=settings.log_level, json=settings.log_json)
    with ExitStack() as stack:
        try:
            config = read_config(settings)
            refuse_unreachable(settings)
            stack.enter_context(hold_identity(settings.iir_home / "agent"))
            listener = listen(settings.agent_host, settings.agent_port)
            stack.callback(listener.close)
            agent = Agent(settings, config, listener.getsockname()[1])
        except (ConfigError, CaFileUnusable) as exc:
            raise SystemExit(f"iir-agent: {exc}") from exc
        except IdentityTaken as exc:
            raise SystemExit(f"iir-agent: {_TAKEN}") from exc
        except PortTaken as exc:
            raise SystemExit(f"iir-agent: {exc} Set AGENT_PORT to another one.") from exc
        except OSError as exc:
            raise SystemExit(f"iir-agent: can't start: {exc.strerror or exc}") from exc
        run(agent.asgi(), listener, drain_s=lambda: agent.drain_s, on_exit=agent.drain)
