"""`make dev`, `make up`, `make down`: router and agent with the embedded model on this machine.

run   in the foreground until Ctrl-C or SIGTERM; a second Ctrl-C ends everything at once
up    the same detached; comes back when everything is ready, or says why not
down  ends what `up` or `run` started, and nothing else
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import subprocess
import sys
import time
from typing import BinaryIO

from pydantic import ValidationError

from scripts.devstack.children import open_log
from scripts.devstack.errors import AlreadyRunning, StartError
from scripts.devstack.orphans import reap
from scripts.devstack.plan import Plan, home, log_path, make_plan, record_path
from scripts.devstack.prepare import prepare
from scripts.devstack.record import Record, end
from scripts.devstack.supervisor import READY_LIMIT_S, Supervisor, describe, until_signal
from scripts.devstack.text import Waiting, say

DOWN_WAIT_S = 6.0
INTERRUPTED = 130
DOWN_HINT = "make down"


def run() -> int:
    """Prepare and run in the foreground until a signal comes."""
    with _lock():
        return asyncio.run(_supervise(make_plan(), None, "Ctrl-C"))


def serve(*, has_model: bool) -> int:
    """Run, detached, what `up` has prepared."""
    with _lock():
        return asyncio.run(_supervise(make_plan(), has_model, DOWN_HINT))


async def _supervise(plan: Plan, has_model: bool | None, stop_hint: str) -> int:
    """Prepare unless that was done (`has_model` is known), then run; 0 if it was up and was ended."""
    hurry = asyncio.Event()
    was_ready = False

    async def work() -> int:
        nonlocal was_ready
        found = await prepare(plan) if has_model is None else has_model
        supervisor = Supervisor(plan, has_model=found, stop_hint=stop_hint, hurry=hurry)
        try:
            await supervisor.run()
        finally:
            was_ready = supervisor.is_ready()
        return 0

    code = await until_signal(work(), hurry)
    return code if code is not None else 0 if was_ready else INTERRUPTED


def up() -> int:
    """Start everything detached and come back when it is ready."""
    if _running() is not None:
        say("it runs already")
        return _follow(None)
    with _lock():
        plan = make_plan()
        prepared = asyncio.run(until_signal(_prepare(plan), asyncio.Event()))
    if prepared is None:
        return INTERRUPTED
    dev_log = plan.log("dev")
    with open_log(dev_log) as log:
        start = log.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "scripts.dev", "serve", "with" if prepared else "without"],
            env=dict(plan.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code = _follow(child)
    except KeyboardInterrupt:
        child.terminate()
        child.wait(DOWN_WAIT_S)
        return INTERRUPTED
    if code != 0:
        say(dev_log.read_bytes()[start:].decode(errors="replace").strip())
    return code


async def _prepare(plan: Plan) -> int:
    return int(await prepare(plan))


def _follow(child: subprocess.Popen[bytes] | None) -> int:
    """Wait until the detached services are ready and say so; 1 if they ended instead."""
    folder = home()
    waiting = Waiting("starting router and agent")
    until = time.monotonic() + READY_LIMIT_S + DOWN_WAIT_S
    while time.monotonic() < until:
        record = Record.read(record_path(folder))
        if record is not None and record.state == "ready" and record.is_running():
            waiting.clear()
            say(asyncio.run(describe(folder, record, DOWN_HINT)))
            return 0
        has_ended = child.poll() is not None if child else record is None
        if has_ended:
            break
        waiting.tick()
        time.sleep(0.1)
    waiting.clear()
    say(f"it did not start; log: {log_path(folder, 'dev')}")
    return 1


def down() -> int:
    """End what runs; a record of something long gone is removed."""
    record = Record.read(record_path(home()))
    has_ended = record is not None and _end(record)
    say("stopped" if has_ended else "nothing runs")
    return 0


def _end(record: Record) -> bool:
    """End what the record names, and workers that were left; False if nothing of it lived."""
    has_ended = end(record, DOWN_WAIT_S)
    orphans = asyncio.run(reap(home()))
    record_path(home()).unlink(missing_ok=True)
    return has_ended or bool(orphans)


def _running() -> Record | None:
    """Return what runs; children whose supervising process was killed are ended first."""
    record = Record.read(record_path(home()))
    if record is None or record.is_running():
        return record
    _end(record)
    return None


def _lock() -> BinaryIO:
    """Take the lock that the supervising process holds; raises `AlreadyRunning`."""
    record = _running()
    path = record_path(home()).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        where = f" at {record.router_url}/v1" if record else ""
        raise AlreadyRunning(f"it runs already{where}; make down stops it") from None
    return lock


def main() -> int:
    """Do what the first argument says."""
    parser = argparse.ArgumentParser(prog="make", description=__doc__)
    parser.add_argument("action", choices=["run", "up", "down", "serve"])
    parser.add_argument("model", nargs="?", choices=["with", "without"])
    asked = parser.parse_args()
    actions = {"run": run, "up": up, "down": down}
    try:
        if asked.action == "serve":
            return serve(has_model=asked.model == "with")
        return actions[asked.action]()
    except StartError as failure:
        say(str(failure))
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False, include_input=False):
            name = ".".join(str(part) for part in error["loc"]).upper()
            say(f"{name}: {error['msg']} (from the environment or .env)")
    except KeyboardInterrupt:
        return INTERRUPTED
    return 1


if __name__ == "__main__":
    sys.exit(main())
