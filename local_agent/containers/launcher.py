"""Starts engines as containers, takes over those of an earlier agent, and touches no others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TypeVar

import anyio
import anyio.to_thread

from local_agent.containers.causes import exit_cause, exit_number
from local_agent.domain import ModelId, Unended
from local_agent.ports import (
    ContainerClient,
    ContainerError,
    ContainerSpec,
    ContainerView,
    Launch,
    Left,
    Wanted,
)
from local_agent.process.log import TAIL_LINES, WorkerLog, log_file
from local_agent.process.mask import Mask
from local_agent.process.records import file_stem
from shared.kit.logs import get_logger

T = TypeVar("T")

_PREFIX = "io.intelligent-inference-router"
AGENT = f"{_PREFIX}.agent"
WORKER = f"{_PREFIX}.worker"
CONFIG = f"{_PREFIX}.config"
LAUNCH = f"{_PREFIX}.launch"
PORT = f"{_PREFIX}.port"
PULL = f"{_PREFIX}.pull"
_LOOPBACK = "127.0.0.1"
_ADOPTED_LINES = 50
_ALL_LINES = 10_000


async def off_loop(call: Callable[[], T], limit_s: float) -> T:
    """Run a blocking call in a thread, for so long at most; a thread that hangs is left alone.

    Raises:
        ContainerError: it took too long, or what the call raises.
    """
    with anyio.move_on_after(limit_s):
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
    raise ContainerError(
        f"the container engine did not answer within {limit_s:g} s", is_unreachable=True
    )


class ContainerProcess:
    """A started container, seen through its engine."""

    def __init__(
        self,
        client: ContainerClient,
        view: ContainerView,
        spec: ContainerSpec,
        *,
        host: str,
        port: int,
        log: WorkerLog,
        follower: Thread,
        limit_s: float,
        poll_s: float,
        is_adopted: bool,
    ) -> None:
        self._is_adopted = is_adopted
        self._client = client
        self._id = view.id
        self._pid = view.pid
        self._spec = spec
        self._host = host
        self._port = port
        self._log = log
        self._follower = follower
        self._limit_s = limit_s
        self._poll_s = poll_s
        self._exit_cause: str | None = None

    @property
    def pid(self) -> int:
        """Return the process id that the engine tells; on a Mac it is one of the engine's VM."""
        return self._pid

    @property
    def host(self) -> str:
        """Return 127.0.0.1, or its address on the network that the agent shares with it."""
        return self._host

    @property
    def port(self) -> int:
        """Return its port there."""
        return self._port

    @property
    def is_adopted(self) -> bool:
        """Tell whether an earlier agent started it."""
        return self._is_adopted

    @property
    def exit_cause(self) -> str | None:
        """Say why it ended; None while it runs."""
        return self._exit_cause

    async def wait(self) -> int:
        """Return its exit code once it has ended, -1 if that can't be known; bounds the log meanwhile."""
        strikes = 0
        while True:
            try:
                view = await off_loop(partial(self._client.look, self._id), self._limit_s)
            except ContainerError as error:
                strikes += 1
                if strikes >= 3:
                    self._exit_cause = error.strerror
                    return -1
            else:
                strikes = 0
                if view is None or not view.is_running:
                    return await self._ended(view)
            self._log.trim()
            await anyio.sleep(self._poll_s)

    async def stop(self, grace_s: float) -> str | None:
        """End and remove it; one whose engine does not answer is left to the next start."""
        try:
            stop = partial(self._client.stop, self._id, grace_s)
            await off_loop(stop, grace_s + self._limit_s)
        except ContainerError as error:
            get_logger("agent").warning("container_left", reason=error.strerror)
            return f"leaked: the container may still run and keep its memory ({error.strerror})"
        return None

    async def is_gone(self) -> bool:
        """Tell whether it has ended; while its engine does not answer, nobody knows that."""
        try:
            view = await off_loop(partial(self._client.look, self._id), self._limit_s)
        except ContainerError:
            return False
        return view is None or not view.is_running

    def log_tail(self, lines: int) -> list[str]:
        """Return the last lines that it wrote."""
        return self._log.tail(lines)

    async def _ended(self, view: ContainerView | None) -> int:
        # its last lines are on their way, and say why
        with suppress(ContainerError):
            await off_loop(partial(self._follower.join, 1.0), 2.0)
        # who removes a container ends it first: between the two it looks as if it had been killed
        with suppress(ContainerError):
            view = view and await off_loop(partial(self._client.look, self._id), self._limit_s)
        self._exit_cause = exit_cause(view, self._spec, self._log.tail(TAIL_LINES))
        return -1 if view is None else exit_number(view.exit_code)


class ContainerLauncher:
    """Starts containers, labelled so that a later agent of the same id finds them."""

    def __init__(
        self,
        *,
        agent_id: str,
        connect: Callable[[], ContainerClient],
        run_dir: Path,
        log_dir: Path,
        secrets: Mapping[str, str],
        network: str = "",
        mask: Mask | None = None,
        is_pulled_elsewhere: Callable[[ModelId], bool] = lambda _: False,
        max_log_bytes: int = 5_000_000,
        limit_s: float = 20.0,
        poll_s: float = 1.0,
    ) -> None:
        """Take what is needed later; nothing is connected before the first container.

        Args:
            agent_id: whose containers these are.
            connect: finds the engine; blocks, and raises `ContainerError`.
            run_dir: where a mark lies once there may be containers.
            log_dir: where the workers' logs lie.
            secrets: goes into each container's environment, and nowhere else.
            network: on which containers are reached; empty: on 127.0.0.1.
            mask: hides secrets in what is read from a log.
            is_pulled_elsewhere: tells whether another process pulls the model of this id, whose
                container is then left alone.
            max_log_bytes: a log over this is moved aside; one older part is kept.
            limit_s: how long any call to the engine may take.
            poll_s: how often a container is looked at.
        """
        self._agent_id = agent_id
        self._connect = connect
        self._mark = run_dir / "containers"
        self._log_dir = log_dir
        self._secrets = dict(secrets)
        self._network = network
        self._mask = mask
        self._is_pulled_elsewhere = is_pulled_elsewhere
        self._max_log_bytes = max_log_bytes
        self._limit_s = limit_s
        self._poll_s = poll_s
        self._client: ContainerClient | None = None
        self._connecting = anyio.Lock()

    async def launch(
        self, name: str, launch: Launch, *, config_hash: str, port: int
    ) -> ContainerProcess:
        """Start a container, or take over the one that runs with exactly this launch.

        Raises:
            ContainerError: it can't be started; the reason is named.
        """
        spec = launch.container
        assert spec is not None  # noqa: S101 - `EitherLauncher` sends no processes here
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        self._mark.touch()
        client = await self._connected()
        labels = {
            AGENT: self._agent_id,
            WORKER: name,
            CONFIG: config_hash,
            LAUNCH: _digest(launch, self._network),
        }
        try:
            view = await self._adopted(client, labels)
            if view is not None:
                return self._process(client, view, spec, _port(view), is_adopted=True)
            view = await self._started(client, launch, labels, port)
        except ContainerError as error:
            self._forget(error)
            raise
        return self._process(client, view, spec, port, is_adopted=False)

    async def left_running(self, wanted: Mapping[str, Wanted]) -> dict[str, Left]:
        """Return which workers still run as they are wanted; a load goes on in them, and is waited for."""
        return {
            name: Left(_port(view), must_serve=False)
            for view in await self._own()
            if self._is_reachable(view)
            and (name := view.labels.get(WORKER, "")) in wanted
            and wanted[name].config_hash == view.labels.get(CONFIG)
        }

    async def reap_orphans(self, keep: Collection[str] = ()) -> list[str]:
        """Remove the containers of an earlier agent of this id; return their workers' names."""
        ended = []
        for view in await self._own():
            name = view.labels.get(WORKER, "")
            pulled = view.labels.get(PULL)
            if view.is_running and (
                name in keep or (pulled is not None and self._is_pulled_elsewhere(ModelId(pulled)))
            ):
                continue
            with suppress(ContainerError):
                client = await self._connected()
                await off_loop(partial(client.stop, view.id, 0), self._limit_s)
                ended.append(name)
        return sorted(ended)

    async def unended(self) -> dict[str, Unended]:
        """See `ProcessLauncher.unended`: what a container holds, its engine's machine holds."""
        return {}

    async def _own(self) -> list[ContainerView]:
        """Return this agent's containers; none where the engine can't be asked now."""
        if not self._mark.exists():
            return []
        try:
            client = await self._connected()
            return await off_loop(partial(client.find, {AGENT: self._agent_id}), self._limit_s)
        except ContainerError as error:
            self._forget(error)
            get_logger("agent").warning("containers_unknown", reason=error.strerror)
            return []

    async def _adopted(
        self, client: ContainerClient, labels: Mapping[str, str]
    ) -> ContainerView | None:
        """Return the worker's container if it is the right one; remove whatever else it has."""
        whose = {AGENT: labels[AGENT], WORKER: labels[WORKER]}
        found = None
        for view in await off_loop(partial(client.find, whose), self._limit_s):
            is_right = view.labels.get(LAUNCH) == labels[LAUNCH] and self._is_reachable(view)
            if is_right and found is None:
                found = view
            else:
                await off_loop(partial(client.stop, view.id, 0), self._limit_s)
        if found is not None:
            get_logger("agent").info("container_adopted", worker=labels[WORKER])
        return found

    async def _started(
        self, client: ContainerClient, launch: Launch, labels: Mapping[str, str], port: int
    ) -> ContainerView:
        start = partial(
            client.start,
            f"iir-{self._agent_id[:8]}-{file_stem(labels[WORKER])}",
            launch,
            env={**launch.env, **self._secrets},
            labels={**labels, PORT: str(port)},
            port=port,
        )
        started = await off_loop(start, self._limit_s)
        view = await off_loop(partial(client.look, started), self._limit_s)
        if view is not None and view.is_running and not self._is_reachable(view):
            with suppress(ContainerError):
                await off_loop(partial(client.stop, started, 0), self._limit_s)
            raise ContainerError(
                "the container got no IPv4 address on the network that AGENT_WORKER_NETWORK names;"
                " name a network that has IPv4"
            )
        return view or ContainerView(id=started, labels=labels, is_running=False)

    def _is_reachable(self, view: ContainerView) -> bool:
        """Tell whether it runs, and can be reached where this agent reaches its workers."""
        has_address = not self._network or bool(view.addresses.get(self._network))
        return view.is_running and _port(view) > 0 and has_address

    def _process(
        self,
        client: ContainerClient,
        view: ContainerView,
        spec: ContainerSpec,
        port: int,
        *,
        is_adopted: bool,
    ) -> ContainerProcess:
        path = log_file(self._log_dir, view.labels[WORKER])
        log = WorkerLog(path, self._max_log_bytes, self._mask)
        follower = Thread(
            target=_follow,
            args=(client, view.id, _ADOPTED_LINES if is_adopted else _ALL_LINES, log.open()),
            name="container log",
            daemon=True,
        )
        follower.start()
        # one that has ended by now has no address; its end is noticed at once
        host = view.addresses.get(self._network) or _LOOPBACK
        return ContainerProcess(
            client,
            view,
            spec,
            host=host,
            port=spec.port if self._network else port,
            log=log,
            follower=follower,
            limit_s=self._limit_s,
            poll_s=self._poll_s,
            is_adopted=is_adopted,
        )

    async def _connected(self) -> ContainerClient:
        async with self._connecting:
            if self._client is None:
                self._client = await off_loop(self._connect, self._limit_s)
            return self._client

    def _forget(self, error: ContainerError) -> None:
        """Look for the engine anew next time: it may come back at another address."""
        if error.is_unreachable:
            self._client = None


def _follow(client: ContainerClient, container: str, lines: int, target: int) -> None:
    """Copy the output of a container to a file, which is closed in the end."""
    try:
        with suppress(OSError):  # the engine is gone, or the disk full: the worker goes on
            client.follow(container, lines, partial(os.write, target))
    finally:
        os.close(target)


def _port(view: ContainerView) -> int:
    text = view.labels.get(PORT, "")
    return int(text) if text.isdecimal() else 0


def _digest(launch: Launch, network: str) -> str:
    """Name a launch: two with one digest need no restart between them."""
    parts = (launch.argv, sorted(launch.env.items()), launch.container)
    named = (*parts, network) if network else parts
    return hashlib.sha256(repr(named).encode()).hexdigest()[:16]
