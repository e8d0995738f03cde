"""`make k3s-up`, `k3s-down`, `k3s-status`, `k3s-doctor`: llm-d in a Kubernetes of this machine.

up      cluster and llm-d, then the line LLMD_ENDPOINT=… for the router; a second time changes nothing
down    lets nothing run; --purge (PURGE=1) takes away all that up made, and nothing else
status  what runs
doctor  what is wrong, and the command that helps
"""

from __future__ import annotations

import argparse
import fcntl
import os
import secrets
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dotenv import dotenv_values

from scripts.devstack.plan import home
from scripts.devstack.text import say
from scripts.k3s import commands, forward
from scripts.k3s.choice import DRIVERS, Choice, Wish
from scripts.k3s.errors import ClusterError
from scripts.k3s.machine import look
from scripts.k3s.tools import Tools
from shared.kit.home import env_file

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = 130
_FETCH_S = 60.0
_FETCH_LIMIT = 1024 * 1024


def main(arguments: Sequence[str] | None = None, place: commands.Place | None = None) -> int:
    """Do what the first argument says; `place` is this machine unless a test has another."""
    asked = _parser().parse_args(arguments)
    try:
        place = place or _here()
        return _run(asked, place)
    except ClusterError as failure:
        print(failure, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        say("\nstopped; make k3s-up goes on from there")
        return INTERRUPTED
    return 1


def _run(asked: argparse.Namespace, place: commands.Place) -> int:
    tools = Tools(
        place.kubeconfig,
        place.environment,
        is_dry=asked.dry_run,
        says_yes=asked.yes,
        answer=input if sys.stdin is not None and sys.stdin.isatty() else None,
    )
    if asked.action == "forward":
        choice = Choice.read(place.record)
        return forward.keep(choice, place.kubeconfig, tools.environment) if choice else 1
    if asked.action == "status":
        return commands.status(place, tools)
    if asked.action == "doctor":
        return commands.examine(place, tools)
    with _lock(place.folder):
        if asked.action == "down":
            return commands.down(place, tools, purge=asked.purge)
        token = place.environment.get("HF_TOKEN") or _from_file(place.env_file, "HF_TOKEN")
        return commands.up(place, tools, _wish(asked), timeout=asked.timeout, token=token)


def _wish(asked: argparse.Namespace) -> Wish:
    return Wish(
        driver=asked.driver,
        profile=asked.profile,
        sets=tuple(asked.set),
        kubeconfig=asked.kubeconfig,
        context=asked.context,
        namespace=asked.namespace,
        cluster=asked.cluster,
        port=asked.port,
        forget=asked.forget,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make k3s-up",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="With make: K3S_ARGS='--driver k3d --profile sim' make k3s-up",
    )
    add = parser.add_argument
    add("action", choices=["up", "down", "status", "doctor", "forward"])
    add("--driver", choices=DRIVERS, help="default: native for a GPU, else k3d, else native")
    add("--profile", help="of worker_cluster/chart/values; default: gpu-small with a GPU, else cpu")
    add(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a value; kept from then on"
    )
    add("--forget", action="store_true", help="forget the values that were set before")
    add(
        "--kubeconfig",
        type=Path,
        help="with --driver existing: the file; it is copied, not changed",
    )
    add("--context", help="with --kubeconfig: which of its contexts (default: its current one)")
    add("--namespace", help="default: llm-d")
    add("--cluster", help="the k3d cluster's name (default: iir)")
    add("--port", type=int, help="the port on 127.0.0.1 (default: 18000; native needs none)")
    add("--timeout", default="30m", help="how long llm-d may take to be ready (default: 30m)")
    add("--dry-run", action="store_true", help="say what would be done (DRY_RUN=1)")
    add("--yes", action="store_true", help="agree to everything that is asked (YES=1)")
    add("--purge", action="store_true", help="down: take away what up made, models too (PURGE=1)")
    return parser


def _here() -> commands.Place:
    environment = dict(os.environ)
    return commands.Place(
        root=ROOT,
        home=home(),
        env_file=env_file(environment.get("IIR_HOME")),
        environment=environment,
        machine=look(environment, ROOT),
        fetch=_fetch,
        new_id=lambda: secrets.token_hex(8),
    )


def _fetch(url: str) -> bytes:
    try:
        # the URL is pinned, and https
        with urllib.request.urlopen(url, timeout=_FETCH_S) as answer:  # noqa: S310
            return bytes(answer.read(_FETCH_LIMIT))
    except OSError as failure:
        raise ClusterError(f"{url} can't be read: {failure}. Is the network there?") from None


def _from_file(path: Path, name: str) -> str:
    return (dotenv_values(path).get(name) or "") if path.is_file() else ""


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of all that changes the cluster; raises `ClusterError` if another has it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ClusterError("Another make k3s-up or k3s-down is at work: wait for it.") from None
        yield


if __name__ == "__main__":
    sys.exit(main())
