"""The supervising process: both children, their readiness, the signals."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from scripts.devstack.children import Child, stop
from scripts.devstack.errors import NotReady
from scripts.devstack.orphans import reap
from scripts.devstack.plan import MODEL, Plan, command
from scripts.devstack.probes import get, model_status
from scripts.devstack.record import Identity, Record
from scripts.devstack.text import Waiting, ready_text, say, tail

READY_LIMIT_S = 120.0
SECOND_SIGNAL_S = 0.3
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Runs both children until it is cancelled."""

    def __init__(
        self, plan: Plan, *, has_model: bool, stop_hint: str, hurry: asyncio.Event
    ) -> None:
        self._plan = plan
        self._stop_hint = stop_hint
        self._hurry = hurry
        self._record = Record(Identity.of(), plan.router_url, has_model)
        self._children = [
            Child("router", command("router", "serve"), plan.environment, plan.log("router")),
            Child("agent", command("local_agent", "serve"), plan.environment, plan.log("agent")),
        ]

    def is_ready(self) -> bool:
        """Tell whether everything was up once."""
        return self._record.state == "ready"

    async def run(self) -> None:
        """Start, wait until all is ready, say so, and go on until cancelled.

        Raises `ServiceEnded` or `NotReady`; nothing runs any more when it returns or raises.
        """
        keepers = [
            asyncio.ensure_future(child.keep(self._write, self.is_ready))
            for child in self._children
        ]
        waiter = asyncio.ensure_future(self._wait_ready())
        tasks = [waiter, *keepers]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            self._record.state = "ready"
            self._write()
            say(await describe(self._plan.home, self._record, self._stop_hint))
            await asyncio.gather(*keepers)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await stop(self._children, self._hurry)
            await reap(self._plan.home)
            self._plan.record_path.unlink(missing_ok=True)

    def _write(self) -> None:
        living = {child.name: child.identity for child in self._children}
        self._record.children = {name: found for name, found in living.items() if found}
        self._record.write(self._plan.record_path)

    async def _wait_ready(self) -> None:
        waiting = Waiting("starting router and agent")
        until = time.monotonic() + READY_LIMIT_S
        try:
            while (lacking := await self._lacking()) is not None:
                if time.monotonic() > until:
                    raise NotReady(self._with_log(f"{lacking} within {READY_LIMIT_S:.0f} s"))
                waiting.tick()
                await asyncio.sleep(0.1)
        finally:
            waiting.clear()

    async def _lacking(self) -> str | None:
        """Return what is missing, or None; raises `NotReady` if it won't come."""
        for name, url in (("router", self._plan.router_url), ("agent", self._plan.agent_url)):
            if (await get(f"{url}/readyz"))[0] != 200:
                return f"the {name} was not ready"
        if not self._record.has_model:
            return None
        status = model_status((await get(f"{self._plan.agent_url}/v1/models"))[1], MODEL)
        if status == "failed":
            raise NotReady(self._with_log(f"the model {MODEL} could not be loaded"))
        if status != "loaded":
            return f"the model {MODEL} was not loaded"
        # With keys in force the router does not say what it has; its readiness must do then.
        routed = (await get(f"{self._plan.router_url}/v1/models/default"))[0]
        return None if routed in {200, 401, 403} else "the router did not know the agent's models"

    def _with_log(self, what: str) -> str:
        log = self._plan.log("agent")
        return f"{what}; the end of {log}:\n{tail(log)}"


async def describe(home: Path, record: Record, stop_hint: str) -> str:
    """Return the text that goes with `ready:`."""
    status, _ = await get(f"{record.router_url}/v1/models")
    return ready_text(
        home,
        record.router_url,
        needs_key=status in {401, 403},
        has_model=record.has_model,
        stop=stop_hint,
    )


async def until_signal(work: Coroutine[Any, Any, int], hurry: asyncio.Event) -> int | None:
    """Run `work`; the first signal cancels it (None), a later Ctrl-C sets `hurry`."""
    task = asyncio.ensure_future(work)
    first_at: list[float] = []

    def on_signal(number: signal.Signals) -> None:
        if not first_at:
            first_at.append(time.monotonic())
            task.cancel()
            say("\nstopping")
        elif number == signal.SIGINT and time.monotonic() - first_at[0] > SECOND_SIGNAL_S:
            hurry.set()

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await task
    except asyncio.CancelledError:
        return None
