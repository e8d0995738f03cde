"""Where the documents' commands run: a checkout's folder with a router and an agent of its own."""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from local_agent.process import free_port
from shared.kit.clock import monotonic
from tests.router.harness import install

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
PROGRAMS = {"iir": "router", "iir-agent": "local_agent", "python": None}
CAN_FORK = sys.platform != "darwin"  # Apple's frameworks do not survive a fork without an exec
MODELS = {
    "models": [
        {"id": "smollm2-135m", "engine": "simulated", "preload": False},
        {"id": "my-7b", "engine": "simulated"},
    ]
}


@contextmanager
def zygote() -> Iterator[Path]:
    """Yield a folder whose `bin` holds the programs, and run the process that becomes them.

    Where a process must not fork, each program is a process of its own: the same, and slower.
    """
    with tempfile.TemporaryDirectory(prefix="iir") as folder:  # a socket's path must be short
        place = Path(folder)
        address = str(place / "socket")
        (place / "bin").mkdir()
        curl = shutil.which("curl")
        assert curl is not None, "the documents' commands need curl"
        _write_program(place, "curl", [curl, "--fail-with-body", "--max-time", "15"])
        for program, module in PROGRAMS.items():
            words = [sys.executable, *(["-m", module] if module else [])]
            if CAN_FORK:
                shim = str(Path(__file__).with_name("shim.py"))
                words = [sys.executable, "-I", "-S", shim, address, program]
            _write_program(place, program, words)
        if not CAN_FORK:
            yield place
            return
        with subprocess.Popen(
            [sys.executable, "-m", "tests.docs.zygote", address],
            cwd=ROOT,
            env={"PATH": os.defpath, "IIR_HOME": str(place / "nobody")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"listening\n"
            yield place
            assert process.stdin is not None
            process.stdin.close()
            process.wait(PATIENCE_S)


def _write_program(place: Path, name: str, words: list[str]) -> None:
    path = place / "bin" / name
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)


def _end_service(service: subprocess.Popen[bytes]) -> None:
    service.terminate()
    try:
        service.wait(PATIENCE_S)
    finally:
        service.kill()
        service.wait()


@dataclass(frozen=True, slots=True)
class Done:
    """How a snippet ended, and what it printed."""

    code: int
    output: str


class Playground:
    """A folder like a checkout, in which both services run; commands find them."""

    def __init__(self, place: Path, folder: Path) -> None:
        self.folder = folder
        self.bin = place / "bin"
        self.home = folder / "data"
        self.ports = {"8000": str(free_port()), "5000": str(free_port())}
        self._client = httpx.Client(trust_env=False, verify=False)  # loads no certificates
        self._services: list[subprocess.Popen[bytes]] = []
        (folder / ".venv").mkdir(parents=True)
        (folder / ".venv" / "bin").symlink_to(self.bin)
        install(self.home / "models.db")
        agent_yaml = self.home / "agent" / "agent.yaml"
        agent_yaml.parent.mkdir()
        agent_yaml.write_text(json.dumps(MODELS))

    @property
    def environment(self) -> dict[str, str]:
        """Return what a command sees: no setting but where both services are."""
        return {
            "PATH": f"{self.bin}:{os.defpath}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "COLUMNS": "200",
            "IIR_HOME": str(self.home),
            "ROUTER_PORT": self.ports["8000"],
            "AGENT_PORT": self.ports["5000"],
            "ROUTER_URL": f"http://127.0.0.1:{self.ports['8000']}",
            "AGENT_NAME": "my-mac",
            "AGENT_DRAIN_S": "0",
            "ROUTER_DRAIN_S": "0",
        }

    # nobody derives from it, and Python 3.10 has no Self
    def __enter__(self) -> Playground:  # noqa: PYI034
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _start(self) -> None:
        done = self.run(f"iir agents add my-mac --token-file {self.home}/agent/credential")
        assert done.code == 0, done.output
        for words in ("iir serve", "iir-agent serve"):
            self._serve(words)
        for port, words in (("8000", "the router"), ("5000", "the agent")):
            self._until(partial(self._is_ready, port), words)
        self._until(lambda: self._said("5000", "lease") == "held", "the agent's lease")

    def _end(self) -> None:
        """End both services, the agent first.

        Raises:
            subprocess.TimeoutExpired: one did not end by itself; it was killed.
        """
        with ExitStack() as stack:
            stack.callback(self._client.close)
            for service in self._services:
                stack.callback(_end_service, service)

    def _serve(self, words: str) -> None:
        with (self.folder / f"{words.split(maxsplit=1)[0]}.log").open("wb") as log:
            self._services.append(
                subprocess.Popen(
                    ["/bin/sh", "-c", f"exec {words}"],
                    cwd=self.folder,
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                )
            )

    def _is_ready(self, port: str) -> bool:
        return self._said(port, "status") == "ready"

    def _said(self, port: str, field: str) -> object:
        """Return a field of `/readyz`; None as long as nobody answers."""
        try:
            url = f"http://127.0.0.1:{self.ports[port]}/readyz"
            answer: dict[str, object] = self._client.get(url).json()
            return answer.get(field)
        except httpx.HTTPError:
            return None

    def _until(self, is_true: Callable[[], bool], what: str) -> None:
        ends = monotonic() + PATIENCE_S
        while not is_true():
            if monotonic() > ends:
                logs = "".join(path.read_text() for path in self.folder.glob("*.log"))
                raise AssertionError(f"{what} did not come: {logs}")
            time.sleep(0.01)

    def catch_up(self) -> None:
        """Wait until the router has what was written: it looks a few times a second."""
        with closing(sqlite3.connect(self.home / "models.db")) as registry:
            asked = "SELECT value FROM meta WHERE key = 'catalog_version'"
            (version,) = registry.execute(asked).fetchone()
        loaded = f'"version":{version},'
        log = self.folder / "iir.log"
        self._until(lambda: loaded in log.read_text(), "the router's new catalog")

    def here(self, text: str) -> str:
        """Return a snippet with the ports of this place."""
        for usual, own in self.ports.items():
            for host in ("127.0.0.1", "localhost"):
                text = text.replace(f"{host}:{usual}", f"127.0.0.1:{own}")
        return text

    def run(self, script: str, program: str = "sh") -> Done:
        """Run a snippet to its end; a line that fails ends it."""
        shell = ["/bin/sh"] if program == "sh" else [str(self.bin / program)]
        done = subprocess.run(
            [*shell, "-euc" if program == "sh" else "-c", self.here(script)],
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return Done(done.returncode, done.stdout)

    def run_until_it_speaks(self, script: str) -> Done:
        """Run a snippet that goes on by itself until it prints a line, then press Ctrl-C."""
        with subprocess.Popen(
            ["/bin/sh", "-euc", f"exec {self.here(script).strip()}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            try:
                readable, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
                assert readable, f"it prints nothing within {PATIENCE_S:g} s"
                first = process.stdout.readline()
                process.send_signal(signal.SIGINT)
                rest, _ = process.communicate(timeout=PATIENCE_S)
            finally:
                process.kill()  # one that does not end by Ctrl-C would be waited for
        return Done(process.returncode, first + rest)
