"""One worker: the shell that carries a deployment through its life.

The worker alone changes its state, in plain functions without an await. Whatever was awaited, the
state is looked at again afterwards, never remembered from before.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import NoReturn

import anyio

from local_agent.domain import (
    Deployment,
    EngineLoad,
    ModelId,
    Upstream,
    WorkerState,
    WorkerStatus,
)
from local_agent.lifecycle import SERVING, Event, FailureRule, advance, is_legal
from local_agent.line import Line
from local_agent.load import total_load
from local_agent.memory.meter import weights_bytes
from local_agent.one_token import OneToken, generates
from local_agent.ports import ContainerError, Engine, HttpProber, Launch, Process, ProcessLauncher
from local_agent.process import cause_of, free_port
from local_agent.process.log import TAIL_LINES
from shared.kit.clock import Clock

_GIB = 1024**3
_METRICS = "/metrics"
_MOST_METRICS_BYTES = 1024 * 1024
_METRICS_TRIES = 3
_ADOPTED = "adopted: an earlier agent had started it"


@dataclass(frozen=True, slots=True)
class _Questions:
    """What an engine is asked from time to time: whether it serves, what it has to do, for a token."""

    serves: Callable[[], Awaitable[bool]]
    load: Callable[[], Awaitable[None]]
    generates: Callable[[], Awaitable[bool]]


Observer = Callable[[ModelId, WorkerStatus, WorkerStatus, "str | None"], None]
"""Called after each transition with the model, both statuses and the request that caused it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Times of a worker's life, in seconds.

    A worker that was idle for `token_after_s` is asked for one token, which may take `token_s`. One that
    an earlier agent left has to serve within `adopting_s`.
    """

    loading_s: float = 300.0
    loading_s_per_gib: float = 20.0
    loading_probe_every_s: float = 0.1
    health_every_s: float = 5.0
    strikes: int = 3
    stop_grace_s: float = 5.0
    adopting_s: float = 5.0
    token_after_s: float = 60.0
    token_s: float = 30.0


def _nobody_asks(_model: ModelId, _process: Process) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all workers of an agent share.

    `on_leak` is told of a process that could not be ended, before its worker counts as ended.
    """

    launcher: ProcessLauncher
    prober: HttpProber
    clock: Clock
    rng: Random
    limits: Limits
    rule: FailureRule
    free_port: Callable[[], int] = free_port
    on_leak: Callable[[ModelId, Process], None] = _nobody_asks


class Worker:
    """One deployment's process, or the watch over an external server, and its state.

    `line` are its slots and who waits for them: whoever fills it sees to it that it is emptied.
    """

    def __init__(self, model: ModelId, around: Surroundings, observe: Observer) -> None:
        self.model = model
        self.line = Line()
        self._around = around
        self._observe = observe
        self._status = WorkerStatus(since=around.clock())
        self._upstream: Upstream | None = None
        self._process: Process | None = None
        self._scope: anyio.CancelScope  # made by `begin`: scopes are made inside an event loop only
        self._end = Event.FAILED
        self._told: EngineLoad | None = None
        self._sent_then = 0
        self._metrics_tries: float = _METRICS_TRIES

    @property
    def status(self) -> WorkerStatus:
        """Return what is observed now."""
        line = self.line
        return replace(self._status, in_flight=line.in_flight, waiting=line.waiting)

    @property
    def upstream(self) -> Upstream | None:
        """Return where it serves; None unless it is ready for new requests."""
        return self._upstream if self._status.state in SERVING else None

    @property
    def open_since(self) -> float | None:
        """Return since when it takes requests; None if it does not."""
        return None if self.upstream is None else self._status.since

    @property
    def load(self) -> EngineLoad:
        """Return the requests that it has to do with: in the line, and in the engine by others too."""
        line = self.line
        return total_load(
            sent=line.in_flight, queued=line.waiting, told=self._told, sent_then=self._sent_then
        )

    @property
    def pid(self) -> int | None:
        """Return the process id, None while there is no process."""
        return self._process.pid if self._process else None

    def begin(self, deployment: Deployment, request_id: str | None = None) -> None:
        """Say that `live` follows: from now on the worker is alive.

        Raises:
            IllegalTransitionError: it does not rest.
        """
        self._scope = anyio.CancelScope()
        self._upstream = None
        self._told, self._metrics_tries = None, _METRICS_TRIES
        self._end = Event.FAILED
        self._apply(Event.START, config_hash=deployment.config_hash, request_id=request_id)

    def drain(self, reason: str | None = None) -> None:
        """Take no new requests."""
        self._apply(Event.DRAIN, reason)

    def stop(self, reason: str | None = None) -> None:
        """Ask the life to end; `live` returns once the process is gone."""
        self._apply(Event.STOP, reason)
        self._scope.cancel()

    def reset(self) -> None:
        """Forget the failures."""
        self._apply(Event.RESET)

    def disable(self, reason: str) -> None:
        """Say why it can't run here."""
        self._apply(Event.DISABLE, reason)

    def pull(self) -> None:
        """Say that what it lacks is being pulled."""
        self._apply(Event.PULL)

    def enable(self) -> None:
        """Say that it can run again."""
        self._apply(Event.ENABLE)

    async def live(self, deployment: Deployment, engine: Engine) -> None:
        """Carry the deployment from the start, announced by `begin`, to its end.

        Ends by `stop`, by a failure, or by cancellation; in each case the process is gone.
        """
        cause: str | None = None
        try:
            with self._scope:
                cause = await self._run(deployment, engine)
        finally:
            if self._status.state is not WorkerState.STOPPING:
                self._apply(Event.UNHEALTHY if cause else Event.STOP, cause)
            with anyio.CancelScope(shield=True):
                left = await self._end_process()
            reason = "; ".join(text for text in (cause, left) if text) or None
            self._apply(self._end if cause else Event.EXITED, reason)

    async def _run(self, deployment: Deployment, engine: Engine) -> str | None:
        """Run until something fails, and return the cause; None if it was stopped."""
        port = self._around.free_port()
        launch = engine.launch(deployment, port)
        if launch is None:
            return await self._attach(self._questions(_root(deployment, None), deployment, engine))
        return await self._carry(deployment, launch, port, engine)

    def _questions(self, root: str, deployment: Deployment, engine: Engine) -> _Questions:
        """Take the address below which `/v1` lies; return what to ask there."""
        self._upstream = upstream = Upstream(f"{root}/v1", engine.upstream_name(deployment))
        probe, prober = engine.readiness(), self._around.prober
        apis, token_s = engine.apis(deployment), self._around.limits.token_s
        return _Questions(
            partial(prober.ok, f"{root}{probe.path}", probe.timeout_s),
            partial(self._read_load, f"{root}{_METRICS}", probe.timeout_s, engine),
            partial(generates, prober, upstream, apis, token_s),
        )

    async def _read_load(self, url: str, timeout_s: float, engine: Engine) -> None:
        """Ask the engine what it has to do; one that never tells is not asked on and on."""
        if self._metrics_tries <= 0:
            return
        text = await self._around.prober.text(url, timeout_s, _MOST_METRICS_BYTES)
        self._metrics_tries = self._metrics_tries - 1 if text is None else math.inf
        self._told = None if text is None else engine.parse_load(text)
        self._sent_then = self.line.in_flight

    async def _carry(
        self, deployment: Deployment, launch: Launch, port: int, engine: Engine
    ) -> str | None:
        try:
            # a half-started process would belong to nobody
            with anyio.CancelScope(shield=True):
                process = await self._around.launcher.launch(
                    deployment.model, launch, config_hash=deployment.config_hash, port=port
                )
        except OSError as error:
            if isinstance(error, ContainerError) and error.is_outside:
                self._end = Event.HELD_UP
            return f"the engine can't be started: {error.strerror or 'unknown error'}"
        self._process = process
        questions = self._questions(_root(deployment, process), deployment, engine)
        if process.is_adopted and await questions.serves():
            self._try(Event.ADOPTED, _ADOPTED)
        elif not self._try(Event.SPAWNED):
            return None
        causes: list[str] = []
        async with anyio.create_task_group() as group:

            async def watch_exit() -> None:
                code = await process.wait()
                cause = process.exit_cause or cause_of(code, process.log_tail(TAIL_LINES))
                self._fail(causes, cause)
                group.cancel_scope.cancel()

            async def watch_health() -> None:
                self._fail(causes, await self._watch_health(deployment, questions))
                group.cancel_scope.cancel()

            group.start_soon(watch_exit)
            group.start_soon(watch_health)
        return causes[0]

    def _fail(self, causes: list[str], cause: str) -> None:
        """Leave the ready state at once, before the process has been cleared away."""
        causes.append(cause)
        self._try(Event.UNHEALTHY, cause)

    async def _watch_health(self, deployment: Deployment, ask: _Questions) -> str:
        """Wait until it serves, then watch that it goes on; return what is wrong."""
        limits = self._around.limits
        limit_s = limits.loading_s + limits.loading_s_per_gib * weights_bytes(deployment) / _GIB
        with anyio.move_on_after(limit_s) as loading:
            while not await ask.serves():  # noqa: ASYNC110 - nothing but asking tells
                await anyio.sleep(limits.loading_probe_every_s)
        if loading.cancelled_caught:
            return f"it was not ready within {limit_s:.0f} s"
        self._try(Event.LOADED)
        token = OneToken(ask.generates, self._around.clock, limits.token_after_s)
        strikes, is_well = 0, True
        while strikes < limits.strikes:
            if not strikes:
                await ask.load()
            await anyio.sleep(limits.health_every_s)
            is_well = await ask.serves()
            strikes = 0 if is_well and await token.ok(self.load.running) else strikes + 1
        what = "generated nothing when it was asked to" if is_well else "failed its health check"
        return f"it {what} {strikes} times in a row"

    async def _attach(self, ask: _Questions) -> NoReturn:
        """Watch a server that somebody else runs, for as long as it is wanted."""
        self._try(Event.SPAWNED)
        strikes = 0
        while True:
            if await ask.serves():
                strikes = 0
                self._try(Event.ATTACHED)
                await ask.load()
            else:
                strikes += 1
                self._miss(strikes)
            await anyio.sleep(self._around.limits.health_every_s)

    def _miss(self, strikes: int) -> None:
        """Say once that the external server does not answer."""
        status = self._status
        is_news = status.state is WorkerState.LOADING and status.reason is None
        if is_news or (
            status.state is WorkerState.EXTERNAL and strikes >= self._around.limits.strikes
        ):
            self._try(Event.LOST, "the external server does not answer")

    async def _end_process(self) -> str | None:
        """Return what is left of it, None if nothing."""
        process, self._process = self._process, None
        if process is None:
            return None
        left = await process.stop(self._around.limits.stop_grace_s)
        if left is not None:
            self._around.on_leak(self.model, process)
        return left

    def _try(self, event: Event, reason: str | None = None) -> bool:
        """Apply what was learnt by waiting, unless the state has moved on meanwhile."""
        if not is_legal(self._status.state, event):
            return False
        self._apply(event, reason)
        return True

    def _apply(
        self,
        event: Event,
        reason: str | None = None,
        *,
        config_hash: str | None = None,
        request_id: str | None = None,
    ) -> None:
        before = self._status
        self._status = advance(
            before,
            event,
            self._around.clock(),
            rng=self._around.rng,
            rule=self._around.rule,
            reason=reason,
            config_hash=config_hash,
        )
        self._observe(self.model, before, self._status, request_id)


def _root(deployment: Deployment, process: Process | None) -> str:
    """Return the address below which `/v1` lies; without a process it is the configured one."""
    if process is not None:
        return f"http://{process.host}:{process.port}"
    return (deployment.external_url or "").rstrip("/").removesuffix("/v1")
