"""A router as a process of its own: for what only a process shows (memory, files, signals)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil

from router.settings import Settings, load_settings
from router.store.writer import RegistryWriter
from shared.kit.run_file import read_run_file
from tests.router.harness import install, register
from tests.router.scenes import CHAT

ROOT = Path(__file__).parents[2]
# Shorter limits than anybody sets: they are no settings, since nobody has a reason to change them.
_LAUNCH = """
import json, resource, sys
from router.__main__ import main
from router.store.ledger import UsageLedger
from shared.http import asgi, serve
from shared.http.protocol import GuardedProtocol

limits = json.loads(sys.argv.pop(1))
if files := limits.pop("files", None):
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
if rows := limits.pop("ledger_rows", None):
    UsageLedger.__init__.__kwdefaults__["most_waiting"] = rows
if idle_s := limits.pop("body_idle_s", None):
    asgi.read_body.__kwdefaults__["idle_s"] = idle_s
if grace_s := limits.pop("body_grace_s", None):
    asgi.read_body.__kwdefaults__["grace_s"] = grace_s
if keep_alive_s := limits.pop("keep_alive_s", None):
    options = serve.server_options
    serve.server_options = lambda **given: {**options(**given), "timeout_keep_alive": keep_alive_s}
for name, value in limits.items():
    setattr(GuardedProtocol, name, value)
main()
"""


def _waited_s(who: str) -> float:
    """Return for how long a thread was ready to run and did not; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{who}/schedstat").read_text().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0


@dataclass(slots=True)
class RouterProcess:
    """A router that serves in a process of its own."""

    base_url: str
    port: int
    process: subprocess.Popen[bytes]
    settings: Settings
    client: httpx.AsyncClient
    log_path: Path

    def rss_mb(self) -> float:
        """Return the memory that it holds, in MiB."""
        found: int = psutil.Process(self.process.pid).memory_info().rss
        return found / 2**20

    def files(self) -> int:
        """Return how many files and sockets it has open."""
        found: int = psutil.Process(self.process.pid).num_fds()
        return found

    def log(self) -> str:
        """Return what it has logged so far."""
        return self.log_path.read_text()

    @asynccontextmanager
    async def meanwhile(self, body: Mapping[str, Any] | None = None) -> AsyncIterator[None]:
        """Ask all the time, and hold that a normal request is answered within a second.

        What this thread computes meanwhile does not count: it does the abuse, and the router waits for it.
        Nor does what either of them waits for a processor that other tests have.

        Args:
            body: a chat to send; without one `/health` is asked.
        """
        is_over = False
        worst_s, asked = 0.0, 0

        async def ask() -> None:
            nonlocal worst_s, asked
            while not is_over:
                started, spent_s = time.perf_counter(), self._spent_s()
                request = self.client.post(CHAT, json=body) if body else self.client.get("/health")
                answer = await request
                assert answer.status_code == 200, answer.text
                spent_s = self._spent_s() - spent_s
                worst_s = max(worst_s, time.perf_counter() - started - spent_s)
                asked += 1
                await asyncio.sleep(0.02)

        task = asyncio.create_task(ask())
        try:
            yield
            is_over = True
            await task
        finally:
            task.cancel()
        assert asked > 0
        assert worst_s < 1.0, f"a normal request took {worst_s:.2f} s"

    def _spent_s(self) -> float:
        """Return what this thread has computed, and it and the router have waited for a processor, in s."""
        return time.thread_time() + _waited_s("thread-self") + _waited_s(str(self.process.pid))

    async def exit_code(self, timeout_s: float = 10.0) -> int:
        """Wait for its end."""
        with anyio.fail_after(timeout_s):
            while self.process.poll() is None:
                await asyncio.sleep(0.01)
        return int(self.process.returncode)

    async def files_fall_to(self, most: int, timeout_s: float = 5.0) -> None:
        """Wait until no more than so many files are open."""
        with anyio.fail_after(timeout_s):
            while self.files() > most:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def router_process(
    home: Path,
    *,
    upstream: str | None = None,
    models: tuple[str, ...] = ("tiny",),
    limits: Mapping[str, Any] | None = None,
    **environment: str,
) -> AsyncIterator[RouterProcess]:
    """Start `iir serve`; it is killed at the end unless it ended before.

    Args:
        home: its IIR_HOME.
        upstream: where the models are.
        models: what the endpoint `engine` serves.
        limits: of a connection (attributes of `GuardedProtocol`), `files`, `body_idle_s`,
            `body_grace_s`, `keep_alive_s` and `ledger_rows`.
        environment: settings, by their names in capitals.
    """
    settings = load_settings(iir_home=home)
    install(Path(settings.store_url.removeprefix("sqlite:///")))
    if upstream is not None:
        writer = RegistryWriter(settings.store_url)
        writer.run_sync(lambda c: register(c, upstream, models))
        writer.close()
    log_path = home / "router.log"
    command = [sys.executable, "-c", _LAUNCH, json.dumps(limits or {}), "serve"]
    variables = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "IIR_HOME": str(home)}
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - starts within a millisecond
            command if limits else [sys.executable, "-m", "router", "serve"],
            env={**variables, "ROUTER_PORT": "0", **environment},
            cwd=home,
            stderr=log,
        )
    try:
        port = await _port_of(process, home, log_path)
        base_url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(
            base_url=base_url, timeout=20, trust_env=False, verify=False
        ) as client:
            running = RouterProcess(base_url, port, process, settings, client, log_path)
            yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)


async def _port_of(process: subprocess.Popen[bytes], home: Path, log_path: Path) -> int:
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        with anyio.fail_after(30):
            while True:
                assert process.poll() is None, _log_of(log_path)
                address = read_run_file(home / "run" / "router.json")
                if address is not None and await _is_ready(client, address.port):
                    return address.port
                await asyncio.sleep(0.02)


def _log_of(path: Path) -> str:
    return path.read_text()


async def _is_ready(client: httpx.AsyncClient, port: int) -> bool:
    try:
        answer = await client.get(f"http://127.0.0.1:{port}/readyz")
    except httpx.HTTPError:
        return False
    return answer.status_code == 200
