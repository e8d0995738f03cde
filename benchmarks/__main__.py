"""`python -m benchmarks`: measure the data plane, print the table, write docs/performance.md."""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import DIRECT, LITELLM, ROUTER, ROUTER_LARGE, ROUTER_PAIR, VARIANTS, Results
from benchmarks.flame import Recorder
from benchmarks.machine import ROOT, describe_commit, describe_machine, find_pinning, today
from benchmarks.measure import Bench, Effort, write_bodies
from benchmarks.native import Load, Upstream, build
from benchmarks.processes import BenchError, plain_environment
from benchmarks.report import PAGE, Run, render, write_page
from benchmarks.targets import MAKERS, NAMES, Missing, Site, Target

_QUICK = Effort(rounds=1, seconds=1.0, chunks=40, stream_timeout_s=20)
_UPSTREAMS = 2  # so that there is something to choose between


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 if every chosen target that is installed was measured."""
    asked = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the programs are ended
    try:
        if asked.flame:
            recorder = Recorder()
            measure([ROUTER], _effort(asked), recorder)
            _say(f"written: {recorder.picture.relative_to(ROOT)}")
            return 0
        results, run = measure(_choose(asked), _effort(asked))
        if not (asked.quick or asked.no_write):
            write_page(results, run)
            _say(f"written: {PAGE.relative_to(ROOT)}")
        print(render(results, run))
    except BenchError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    absent = {one.name for one in run.missing}
    return 0 if set(results.targets(run.names)) >= set(run.names) - absent else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the router's data plane beside its peers, on loopback only.",
    )
    parser.add_argument("--rounds", type=int, choices=range(1, 21), metavar="1…20")
    parser.add_argument("--seconds", type=float, help="per measurement, 0.2 to 60")
    parser.add_argument("--only", help="targets, separated by commas: " + ", ".join(_SHORT))
    parser.add_argument("--quick", action="store_true", help="under a minute; writes nothing")
    parser.add_argument(
        "--flame", action="store_true", help="a flame graph of the router instead (needs py-spy)"
    )
    parser.add_argument("--no-write", action="store_true", help="leave docs/performance.md alone")
    asked = parser.parse_args(arguments)
    if asked.seconds is not None and not 0.2 <= asked.seconds <= 60:
        parser.error("--seconds takes 0.2 to 60")
    if asked.only and (unknown := set(asked.only.split(",")) - set(_SHORT)):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(_SHORT)}")
    return asked


_SHORTER = {ROUTER_LARGE: "router-large", ROUTER_PAIR: "router-pair"}
_SHORT = {_SHORTER.get(name, name): name for name in NAMES}


def _choose(asked: argparse.Namespace) -> list[str]:
    if asked.only:
        chosen = {_SHORT[short] for short in asked.only.split(",")}
    else:
        # What takes longest stays out of a quick run.
        chosen = set(NAMES) - ({LITELLM, *VARIANTS} if asked.quick else set())
    return [name for name in NAMES if name in chosen | {DIRECT}]  # all else is compared with it


def _effort(asked: argparse.Namespace) -> Effort:
    base = _QUICK if asked.quick else Effort()
    return Effort(
        rounds=asked.rounds or base.rounds,
        seconds=asked.seconds or base.seconds,
        chunks=base.chunks,
        stream_timeout_s=base.stream_timeout_s,
    )


def measure(
    names: Sequence[str], effort: Effort, recorder: Recorder | None = None
) -> tuple[Results, Run]:
    """Prepare everything in a folder of its own, measure, and clean up.

    With a recorder the first target has its flame graph drawn, and nothing is measured.
    """
    programs = build()
    pinning = find_pinning()
    _say(pinning.text)
    commit = describe_commit()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="iir-bench-")))
        upstreams = []
        for _ in range(_UPSTREAMS):
            upstream = Upstream(programs, pinning.load)
            stack.callback(upstream.stop)
            upstreams.append(upstream)
        made = _make(names, Site(folder, [upstream.port for upstream in upstreams]))
        bench = Bench(
            targets=[one for one in made if isinstance(one, Target)],
            upstreams=upstreams,
            load=Load(programs, pinning.load),
            bodies=write_bodies(folder),
            pinning=pinning,
            effort=effort,
            say=_say,
            results=Results(),
        )
        if recorder is not None:
            bench.draw(bench.targets[0], recorder)
        results = bench.results if recorder is not None else bench.run()
    run = Run(
        date=today(),
        machine=describe_machine(),
        commit=commit,
        pinning=pinning.text,
        rounds=effort.rounds,
        seconds=effort.seconds,
        names=names,
        missing=[one for one in made if isinstance(one, Missing)],
    )
    return results, run


def _make(names: Sequence[str], site: Site) -> list[Target | Missing]:
    if {ROUTER, *VARIANTS} & set(names):
        # A first import writes the bytecode: what is measured is not the compiler.
        subprocess.run(
            [sys.executable, "-c", "import local_agent.app, router.app"],
            env=plain_environment({"PYTHONPATH": str(ROOT), "IIR_HOME": str(site.folder)}),
            cwd=site.folder,
            check=False,
            timeout=120,
        )
    made = []
    for name in names:
        one = MAKERS[name](site)
        if isinstance(one, Missing):
            _say(f"not installed: {one.name} ({one.reason})")
        made.append(one)
    return made


_BEGAN = time.monotonic()


def _say(text: str) -> None:
    print(f"[{time.monotonic() - _BEGAN:4.0f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
