"""`python -m tests.soak.engine`: a simulated engine as a process, part of whose answers go wrong."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec

from shared.testing.engine import EngineOptions, SimulatedEngine
from shared.testing.faults import HEADER
from shared.testing.personas import persona_named
from shared.testing.steps import Latency
from shared.testing.wire import Exchange, WireServer
from tests.soak.faults import choose_fault
from tests.soak.plan import ENGINES, EnginePlan

_KEPT = 50  # requests in the engine's own journal, which keeps their bodies


class _Wanted(msgspec.Struct):
    stream: bool = False


class TroubledEngine:
    """Gives some requests a fault, and writes down the id of each before it is answered.

    The ids go to a file at once, so that not even SIGKILL loses one.
    """

    def __init__(self, plan: EnginePlan, *, seed: str, seen_path: Path) -> None:
        options = EngineOptions(
            models=plan.models,
            persona=persona_named(plan.persona),
            latency=Latency(ttft_s=plan.ttft_ms / 1000, itl_s=plan.itl_ms / 1000),
            tokens=plan.tokens,
        )
        self._engine = SimulatedEngine(options)
        self._trouble = plan.trouble
        self._rng = Random(seed)
        self._seen = os.open(seen_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = exchange.request
        if request.method == "POST":
            os.write(self._seen, f"{request.header('x-request-id')}\n".encode())
            if self._rng.random() < self._trouble:
                fault = choose_fault(self._rng, is_stream=_is_stream(request.body))
                exchange.request = replace(request, headers=(*request.headers, (HEADER, fault)))
        if len(self._engine.journal.entries) > _KEPT:
            self._engine.reset()
        await self._engine.handle(exchange)


def _is_stream(body: bytes) -> bool:
    try:
        return msgspec.json.decode(body, type=_Wanted).stream
    except msgspec.DecodeError:
        return False


async def serve(plan: EnginePlan, *, port: int, seed: str, seen_path: Path) -> int:
    """Serve until SIGTERM; returns how many requests met a defect of the engine itself."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = WireServer(TroubledEngine(plan, seed=seed, seen_path=seen_path).handle)
    base_url = await server.start("127.0.0.1", port)
    print(base_url, flush=True)
    await stop.wait()
    await server.close()
    for failure in server.failures:
        print(f"{plan.name}: {failure!r}", file=sys.stderr)
    return len(server.failures)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the engine of this name."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.engine")
    parser.add_argument("name", choices=[engine.name for engine in ENGINES])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", default="")
    parser.add_argument("--seen", type=Path, required=True, help="where request ids are written")
    asked = parser.parse_args(arguments)
    plan = next(engine for engine in ENGINES if engine.name == asked.name)
    return asyncio.run(serve(plan, port=asked.port, seed=asked.seed, seen_path=asked.seen))


if __name__ == "__main__":
    sys.exit(min(main(), 1))
