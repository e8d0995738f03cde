"""A port of loopback that leads into a cluster whose nodes this machine can't reach.

`kubectl port-forward` ends when its pod does, so a detached process of ours starts it again.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import psutil

from scripts.devstack.children import Child, open_log, stop
from scripts.devstack.ports import free_port, holder, is_free
from scripts.devstack.record import Identity, kill, wait_gone, with_descendants
from scripts.devstack.supervisor import until_signal
from scripts.k3s.choice import Choice, again
from scripts.k3s.errors import ClusterError
from scripts.k3s.pins import PORT_NAME, SERVICE

LOOPBACK = "127.0.0.1"
_END_S = 5.0
_GRACE_S = 2.0
_OURSELVES = (sys.executable, "-m", "scripts.k3s", "forward")


def is_running(folder: Path) -> bool:
    """Tell whether the detached process lives."""
    identity = _read(folder)
    return identity is not None and identity.process() is not None


def start(folder: Path, choice: Choice, environment: Mapping[str, str], root: Path) -> None:
    """Start the detached process anew; raises `ClusterError` if the port is taken."""
    end(folder)
    if not is_free(LOOPBACK, choice.port):
        who = holder(choice.port)
        raise ClusterError(
            f"Port {choice.port} is taken{f' by {who}' if who else ''}. Stop that program, or: "
            f"PURGE=1 make k3s-down, then {again(f'--port {free_port(LOOPBACK, choice.port + 1)}')}"
        )
    with open_log(log(folder)) as output:
        # the shell ends at once, so that the process is nobody's child
        started = subprocess.run(
            ["/bin/sh", "-c", '"$@" </dev/null >&2 & echo $!', "sh", *_OURSELVES],
            cwd=root,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,
            check=True,
        )
    try:
        identity = Identity.of(int(started.stdout))
    except psutil.NoSuchProcess:
        raise ClusterError(
            f"The forwarding of port {choice.port} ended at once; log: {log(folder)}"
        ) from None
    _record(folder).write_text(json.dumps(asdict(identity)))


def end(folder: Path) -> bool:
    """End it and what it started; False if it did not run."""
    identity = _read(folder)
    family = with_descendants([identity]) if identity else []
    if family:
        family[0].terminate()
        kill(wait_gone(family, _END_S))
        wait_gone(family, _GRACE_S)
    _record(folder).unlink(missing_ok=True)
    return bool(family)


def log(folder: Path) -> Path:
    """Return its log."""
    return folder / "forward.log"


def keep(choice: Choice, kubeconfig: Path, environment: Mapping[str, str]) -> int:
    """Forward until a signal comes: what the detached process does."""
    command = [
        *("kubectl", "--kubeconfig", str(kubeconfig), "port-forward"),
        *("--namespace", choice.namespace, "--address", LOOPBACK),
        *(f"service/{SERVICE}", f"{choice.port}:{PORT_NAME}"),
    ]
    child = Child("port-forward", command, environment, kubeconfig.with_name("port-forward.log"))

    async def work() -> int:
        try:
            # it may end before it was ever up: the pod is not there yet
            await child.keep(lambda: None, lambda: True)
        finally:
            await stop([child], hurry, _GRACE_S)
        return 0

    async def run() -> int:
        return await until_signal(work(), hurry) or 0

    hurry = asyncio.Event()
    return asyncio.run(run())


def _record(folder: Path) -> Path:
    return folder / "forward.json"


def _read(folder: Path) -> Identity | None:
    try:
        return Identity(**json.loads(_record(folder).read_text()))
    except (OSError, ValueError, TypeError, psutil.Error):
        return None
