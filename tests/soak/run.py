"""One soak: start everything, load it, wait until it is quiet, and look what is left."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from router.settings import load_settings
from router.store.writer import RegistryWriter
from tests.router.harness import install
from tests.router.process import RouterProcess, router_process
from tests.soak.accounts import Account, Row
from tests.soak.asks import make_ask
from tests.soak.books import (
    Metrics,
    check_ledger,
    check_log,
    check_metrics,
    check_seen,
    note_heard,
    quiet_metrics,
    read_ledger,
)
from tests.soak.changes import operate
from tests.soak.clients import Client, Desk
from tests.soak.plan import MODELS, PATIENCE_S, SETTINGS, register
from tests.soak.programs import Engine, agent, engines, invite
from tests.soak.watch import Watch, growth
from tests.soak.wire import Line, render

# The router keeps idle upstream connections for 4 s and looks every 2 s; a probe each 2 s keeps one.
_IDLE_S = 8.0
_END_S = 60.0
_MOST_ANSWER_S = 1.0
# What may be open to an engine that is idle: a probe's connection, which is kept.
_MOST_CONNECTIONS = 1
_MORE_FILES = 2
_MORE_TASKS = 2
# Fragments and peaks take up to 4 MiB after the first quarter of two minutes, and 1 of ten. A leak takes
# this much if it is 1.2 KiB per request in two minutes, 80 bytes in thirty.
_MORE_RSS_MB = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is run."""

    minutes: float
    clients: int
    seed: int
    say: Callable[[str], None]


@dataclass(slots=True)
class State:
    """What the router holds while it is idle."""

    files: int
    sockets: int
    tasks: int


@dataclass(slots=True)
class Found:
    """What came of a soak."""

    seed: int
    seconds: float = 0.0
    accounts: dict[str, Account] = field(default_factory=dict)
    ledger: dict[str, list[Row]] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    watch: Watch | None = None
    before: State | None = None
    after: State | None = None
    connections: dict[str, int] = field(default_factory=dict)
    engine_ends: dict[str, int] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Site:
    """Everything that runs."""

    router: RouterProcess
    engines: Sequence[Engine]
    keys: dict[str, str]


async def soak(options: Options, folder: Path) -> Found:
    """Run it all, in this folder."""
    found = Found(options.seed)
    async with AsyncExitStack() as stack:
        site = await _start(options, folder, stack)
        await _warm_up(site)
        found.before = await _state(site, found)
        options.say(f"idle: {found.before}")
        await _load(options, site, found)
        options.say("the load has ended; waiting until all is quiet")
        found.metrics, busy = await quiet_metrics(site.router.client)
        found.complaints += busy
        await asyncio.sleep(_IDLE_S)
        found.after = await _state(site, found)
        options.say(f"idle again: {found.after}")
        await _stop_router(site.router, found)
        _check_books(site, found)
        for engine in site.engines:
            if await engine.stop():
                found.complaints.append(f"engine {engine.plan.name}: a defect; see its log")
    _check_watch(found)
    _check_states(found)
    found.complaints = [*dict.fromkeys(found.complaints)]
    return found


async def _start(options: Options, folder: Path, stack: AsyncExitStack) -> Site:
    home = folder / "router"
    running = await stack.enter_async_context(engines(options.seed, folder))
    store_url = load_settings(iir_home=home).store_url
    install(Path(store_url.removeprefix("sqlite:///")))
    writer = RegistryWriter(store_url)
    urls = {engine.plan.name: engine.url for engine in running}
    keys = writer.run_sync(lambda connection: register(connection, urls))
    writer.run_sync(lambda connection: invite(connection, folder / "agent"))
    writer.close()
    router = await stack.enter_async_context(router_process(home, **SETTINGS))
    await stack.enter_async_context(agent(folder / "agent", router.base_url))
    options.say(f"all runs; router: process {router.process.pid}, port {router.port}")
    return Site(router, running, keys)


async def _warm_up(site: Site) -> None:
    """Ask each model a few times: what is opened and loaded on first use is no leak."""
    rng = Random(0)
    for _ in range(5):
        for model in MODELS:
            ask = make_ask(rng, site.keys, model=model)
            line = await Line.open(site.router.port)
            await line.send(render(ask.body, path=ask.path, request_id="warm-up", key=ask.key))
            async for _piece in line.pieces(await line.head()):
                pass
            line.close()
    await asyncio.sleep(_IDLE_S)


async def _load(options: Options, site: Site, found: Found) -> None:
    loop = asyncio.get_running_loop()
    found.watch = watch = Watch(site.router.process.pid, site.router.port)
    desk = Desk(site.router.port, site.keys, options.seed, loop.time())
    found.accounts = desk.accounts
    stop = asyncio.Event()
    rng = Random(options.seed)
    work = {f"client {n}": Client(desk, n).run(stop) for n in range(options.clients)}
    for engine in site.engines:
        if engine.plan.comes_and_goes:
            work[f"unrest of {engine.plan.name}"] = engine.disturb(rng, stop)
    work["operator"] = operate(site.router.settings.store_url, rng, stop)
    tasks = [loop.create_task(each, name=name) for name, each in work.items()]
    watch.start()
    try:
        await _until(desk, options, site)
    finally:
        stop.set()
        done, late = await asyncio.wait(tasks, timeout=_END_S)
        found.seconds = loop.time() - desk.began
        watch.stop()
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    found.complaints += desk.complaints
    found.complaints += [f"{each.get_name()}: no end within {_END_S:.0f} s" for each in late]
    found.complaints += [
        f"{each.get_name()} failed: {each.exception()!r}" for each in done if each.exception()
    ]
    found.engine_ends = {engine.plan.name: engine.ends for engine in site.engines}


async def _until(desk: Desk, options: Options, site: Site) -> None:
    """Wait until the time is over, and say now and then how it goes."""
    loop = asyncio.get_running_loop()
    end = desk.began + options.minutes * 60
    while (left := end - loop.time()) > 0:
        await asyncio.sleep(min(left, 30.0))
        options.say(
            f"{len(desk.accounts)} requests, {len(desk.complaints)} complaints, "
            f"{site.router.rss_mb():.0f} MiB, {site.router.files()} files"
        )
        if site.router.process.poll() is not None:
            desk.complaints.append("the router's process has ended")
            return


async def _state(site: Site, found: Found) -> State:
    metrics, busy = await quiet_metrics(site.router.client)
    found.complaints += busy
    found.connections = {engine.plan.name: engine.connections() for engine in site.engines}
    process = psutil.Process(site.router.process.pid)
    sockets = process.net_connections(kind="tcp")
    return State(
        files=process.num_fds() - len(sockets),
        sockets=sum(each.status != psutil.CONN_LISTEN for each in sockets),
        tasks=int(metrics.values["iir_event_loop_tasks"]),
    )


async def _stop_router(router: RouterProcess, found: Found) -> None:
    """Let it end as it does when it is told to."""
    router.process.send_signal(signal.SIGTERM)
    code = await router.exit_code(PATIENCE_S)
    if code:
        found.complaints.append(f"the router ended with exit code {code}")


def _check_books(site: Site, found: Found) -> None:
    router = site.router
    ledger = read_ledger(router.settings.store_url)
    found.complaints += check_metrics(found.metrics, ledger)
    warm_up = ledger.pop("warm-up", [])
    found.ledger = ledger
    note_heard(router.log_path, found.accounts)
    seen = {engine.plan.name: engine.seen() for engine in site.engines}
    for counts in seen.values():
        del counts["warm-up"]
    found.complaints += check_ledger(found.accounts, ledger)
    found.complaints += check_seen(ledger, seen)
    found.complaints += check_log(router.log_path, found.accounts)
    if not warm_up:
        found.complaints.append("ledger: the first requests are not in it")


def _check_watch(found: Found) -> None:
    watch = found.watch
    assert watch is not None
    found.complaints += watch.failures
    late = [answer_s for answer_s in watch.answer_s if answer_s > _MOST_ANSWER_S]
    if late:
        found.complaints.append(f"/readyz took {max(late):.2f} s ({len(late)} times over 1 s)")
    more_mb = growth(watch.rss_mb)
    if more_mb > _MORE_RSS_MB:
        found.complaints.append(f"memory grew by {more_mb:.1f} MiB, {_MORE_RSS_MB:.0f} are allowed")


def _check_states(found: Found) -> None:
    before, after = found.before, found.after
    assert before is not None
    assert after is not None
    if after.files > before.files + _MORE_FILES:
        found.complaints.append(f"open files: {before.files} before, {after.files} after")
    if after.tasks > before.tasks + _MORE_TASKS:
        found.complaints.append(f"tasks: {before.tasks} before, {after.tasks} after")
    for name, count in found.connections.items():
        if count > _MOST_CONNECTIONS:
            found.complaints.append(f"engine {name}: {count} connections are left open")
