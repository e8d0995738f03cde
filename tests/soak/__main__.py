"""`python -m tests.soak`: run it, say what came of it; exit code 1 if anything is wrong."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom

from tests.soak.report import render
from tests.soak.run import Options, soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description="A router under random faults, on loopback; everything has to add up in the end.",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of load (30)")
    parser.add_argument("--clients", type=int, default=48, help="at the same time (48)")
    parser.add_argument(
        "--seed", type=int, help="of all that is left to chance; printed if not given"
    )
    parser.add_argument("--keep", type=Path, help="folder for registry and logs, kept afterwards")
    asked = parser.parse_args(arguments)
    seed = SystemRandom().randrange(10**6) if asked.seed is None else asked.seed
    options = Options(minutes=asked.minutes, clients=asked.clients, seed=seed, say=_say)
    _say(f"{asked.minutes:g} minutes, {asked.clients} clients, --seed {seed}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the programs are ended
    with tempfile.TemporaryDirectory(prefix="iir-soak-") as folder:
        home = asked.keep or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        found = asyncio.run(soak(options, home))
    print(render(found))
    return 1 if found.complaints else 0


_BEGAN = time.monotonic()


def _say(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:4.0f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
