"""`python -m shared.testing.simulated_engine`: a simulated engine as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from shared.testing.engine import EngineOptions, SimulatedEngine, running
from shared.testing.personas import PERSONAS, persona_named
from shared.testing.steps import Crash, Latency


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="simulated_engine",
        description="An OpenAI or Anthropic server that simulates an engine. It runs no model.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one and prints it")
    parser.add_argument("--model", action="append", default=[], help="repeatable")
    parser.add_argument("--persona", choices=[p.name for p in PERSONAS], default="vllm")
    parser.add_argument("--ttft-ms", type=float, default=0.0)
    parser.add_argument("--itl-ms", type=float, default=0.0)
    parser.add_argument("--load-ms", type=float, default=0.0, help="503 until then")
    parser.add_argument("--tokens", type=int, default=None, help="length of each answer")
    parser.add_argument("--slots", type=int, default=64, help="requests that run at once")
    parser.add_argument("--context", type=int, default=8192, help="tokens")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", action="append", default=[], help="KIND[:key=value,…]")
    parser.add_argument("--ignore-sigterm", action="store_true", help="only SIGKILL ends it")
    return parser.parse_args(arguments)


def build(arguments: argparse.Namespace) -> SimulatedEngine:
    """Return the engine that the command line describes.

    Raises:
        ValueError: a fault can't be read.
    """
    options = EngineOptions(
        models=tuple(arguments.model) or ("simulated",),
        persona=persona_named(arguments.persona),
        latency=Latency(ttft_s=arguments.ttft_ms / 1000, itl_s=arguments.itl_ms / 1000),
        tokens=arguments.tokens,
        seed=arguments.seed,
        api_key=arguments.api_key,
        slots=arguments.slots,
        load_s=arguments.load_ms / 1000,
        context_tokens=arguments.context,
    )
    engine = SimulatedEngine(options, crash=crash_process)
    for text in arguments.fault:
        engine.script.add(text)
    return engine


def crash_process(crash: Crash) -> None:
    """End this process at once, as a crash does: no clean-up, nothing flushed."""
    if crash.signal:
        os.kill(os.getpid(), crash.signal)
    os._exit(crash.exit_code)


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stop.set)
    loop.add_signal_handler(signal.SIGTERM, _nothing if arguments.ignore_sigterm else stop.set)
    engine = build(arguments)
    async with running(engine, host=arguments.host, port=arguments.port) as base_url:
        sys.stdout.write(f"simulated engine, not a real model: {base_url}\n")
        sys.stdout.flush()
        await stop.wait()


def _nothing() -> None:
    """Take a signal and go on."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    asyncio.run(serve(parse_arguments(arguments)))


if __name__ == "__main__":
    main()
