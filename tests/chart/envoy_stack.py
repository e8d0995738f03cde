"""Real Envoy with the chart's own configuration, a picker that obeys, and simulated vLLMs behind it.

For a test of the data path::

    async with envoy_stack(tmp_path, pods=2) as stack:
        stack.url                                   # what Service llm-d:8000 leads to; LLMD_ENDPOINT
        stack.pods[0].requests                      # what a pod saw: headers, body (shared.testing.engine)
        stack.pods[0].script.add("stall:after=2")   # faults of a pod (shared.testing.faults)
        stack.pods[0].crashed.set()                 # ends the pod, also while streams run: they are cut
        stack.picker.refuse(429, reason="rejected-saturated")   # plain text, as llm-d says it
        stack.picker.refuse(503, reason="rejected-no-endpoints")
        stack.picker.hang()                         # takes requests and never answers
        stack.picker.pick([*stack.addresses, REFUSING])         # a pod that accepts no connection
        stack.picker.pick()                         # no pod: 500 "no pods available in datastore"
        stack.picker.pick(stack.addresses)          # well again
        stack.picker.kill()                         # SIGKILL, also while streams run: then 500, empty
        stack.picker.start()                        # there again, on the same port, with the last order
        stack.picker.seen()                         # the headers of each request that it was asked about

A pod that ends before picker and Envoy have passed its answer's head on is a 502, not a cut stream: let the pod
stall, read what it sent, then end it. `proxied` is Envoy and picker alone, for several tests one after another;
`simulated_pods` are the pods. Nothing of the rendered configuration is changed but port numbers; Envoy runs with
the container's own arguments. What is missing on a machine (helm, Envoy) skips the test, in CI it fails.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from shared.testing.engine import EngineOptions, SimulatedEngine, running
from tests.chart.rendering import containers, envoy_program, named, pod_specs, render
from tests.integration.stack import ROOT, machine_environment, until

REFUSING = "127.0.0.1:1"
"""Where nobody listens."""
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
_START_S = 30


class PickerProcess:
    """The endpoint picker as a process, and the orders it can get."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._order: dict[str, object] = {"do": "pick", "pods": []}
        self.port = 0

    def start(self) -> None:
        """Start it, on the port it had before if it was started before."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chart.picker", str(self.port)],
                cwd=ROOT,
                env=machine_environment(GRPC_VERBOSITY="ERROR"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.port = self._answer()
        self._ask(self._order)

    def pick(self, pods: Sequence[str] = ()) -> None:
        """Pick these addresses (`host:port`) in turn; without any, say that there are none."""
        self._do({"do": "pick", "pods": list(pods)})

    def refuse(
        self,
        status: int,
        *,
        reason: str = "",
        body: str = "inference error: ResourceExhausted - request rejected",
    ) -> None:
        """Refuse every request with a status, plain text and `x-llm-d-request-dropped-reason`."""
        self._do({"do": "refuse", "status": status, "reason": reason, "body": body})

    def hang(self) -> None:
        """Take requests and never answer."""
        self._do({"do": "hang"})

    def seen(self) -> list[dict[str, str]]:
        """Return the headers of all requests since it started, pseudo headers included."""
        found: list[dict[str, str]] = self._ask({"do": "tell"})
        return found

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _do(self, order: dict[str, object]) -> None:
        self._order = order
        if self._process is not None:
            self._ask(order)

    def _ask(self, order: dict[str, object]) -> Any:
        assert self._process is not None, "the picker does not run"
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the picker ended: {self._log.read_text()[-2000:]}"
        return json.loads(line)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Envoy as it runs, and its picker.

    Attributes:
        url: where requests go.
        health_url: where kubelet and Prometheus ask.
        picker: whom Envoy asks.
        log: what Envoy printed.
    """

    url: str
    health_url: str
    picker: PickerProcess
    log: Path


@contextmanager
def proxied(folder: Path, values: Mapping[str, object] | None = None) -> Iterator[Proxy]:
    """Run Envoy and a picker without pods.

    Args:
        folder: for their files.
        values: of the chart, mode standalone; ports stay what they are.
    """
    program, found = envoy_program(), render(values)
    picker = PickerProcess(folder / "picker.log")
    picker.start()
    try:
        config = yaml.safe_load(named(found, "ConfigMap", "llm-d-envoy")["data"]["envoy.yaml"])
        admin_port = _free_port()
        _set_ports(config, picker.port, admin_port)
        path = folder / "envoy.yaml"
        path.write_text(json.dumps(config))
        log = folder / "envoy.log"
        with log.open("w") as output:
            envoy = subprocess.Popen(
                [str(program), *_arguments(found, path)], stdout=output, stderr=output
            )
        try:
            ports = _listeners(envoy, admin_port, log)
            yield Proxy(
                url=f"http://127.0.0.1:{ports['inference']}",
                health_url=f"http://127.0.0.1:{ports['health']}",
                picker=picker,
                log=log,
            )
        finally:
            envoy.terminate()  # it writes its log to the end then
            _await_end(envoy)
    finally:
        picker.kill()


def _await_end(envoy: subprocess.Popen[bytes]) -> None:
    try:
        envoy.wait(10)
    finally:
        envoy.kill()
        envoy.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """Simulated vLLMs, each on its own port.

    Attributes:
        engines: what they saw, and what they shall do wrong.
        addresses: `host:port` of each, in the same order.
    """

    engines: tuple[SimulatedEngine, ...]
    addresses: tuple[str, ...]


@asynccontextmanager
async def simulated_pods(number: int, options: EngineOptions | None = None) -> AsyncIterator[Pods]:
    """Run simulated vLLMs that serve the chart's default model."""
    made = options or EngineOptions(models=(MODEL,))
    engines = tuple(SimulatedEngine(made) for _ in range(number))
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(running(engine)) for engine in engines]
        addresses = tuple(url.removeprefix("http://") for url in urls)
        yield Pods(engines=engines, addresses=addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyStack:
    """All of it: see the module."""

    url: str
    picker: PickerProcess
    pods: tuple[SimulatedEngine, ...]
    addresses: tuple[str, ...]
    log: Path


@asynccontextmanager
async def envoy_stack(
    folder: Path,
    *,
    pods: int = 2,
    options: EngineOptions | None = None,
    values: Mapping[str, object] | None = None,
) -> AsyncIterator[EnvoyStack]:
    """Run Envoy, a picker and pods, which the picker picks in turn.

    Args:
        folder: for their files.
        pods: how many.
        options: of each pod.
        values: of the chart.
    """
    with proxied(folder, values) as proxy:
        async with simulated_pods(pods, options) as found:
            proxy.picker.pick(found.addresses)
            yield EnvoyStack(
                url=proxy.url,
                picker=proxy.picker,
                pods=found.engines,
                addresses=found.addresses,
                log=proxy.log,
            )


def _arguments(found: Sequence[dict[str, Any]], config: Path) -> list[str]:
    """Return the container's arguments; its file and its threads are the test's."""
    template = dict(pod_specs(found))["llm-d-epp"]
    (proxy,) = [one for one in containers(template) if one["name"] == "proxy"]
    changed = {"--config-path": str(config), "--concurrency": "1"}
    words = list(proxy["args"])
    for flag, value in changed.items():
        words[words.index(flag) + 1] = value
    return words


def _set_ports(config: dict[str, Any], picker: int, admin: int) -> None:
    """Put free ports into a configuration: several stacks may run at the same time."""
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    resources = config["static_resources"]
    for listener in resources["listeners"]:
        listener["address"]["socket_address"]["port_value"] = 0
    for cluster in resources["clusters"]:
        port = {"picker": picker, "admin": admin}.get(cluster["name"])
        if port is not None:
            (end,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
            end["endpoint"]["address"]["socket_address"]["port_value"] = port


def _listeners(envoy: subprocess.Popen[bytes], admin_port: int, log: Path) -> dict[str, int]:
    """Return the ports of Envoy's listeners once it serves."""
    with httpx.Client(base_url=f"http://127.0.0.1:{admin_port}", trust_env=False) as admin:

        def is_ready() -> bool:
            assert envoy.poll() is None, f"Envoy ended: {log.read_text()[-2000:]}"
            try:
                return admin.get("/ready").status_code == 200
            except httpx.TransportError:
                return False

        until(is_ready, _START_S, "Envoy is ready", every_s=0.02)
        listed = admin.get("/listeners", params={"format": "json"}).json()["listener_statuses"]
    return {one["name"]: one["local_address"]["socket_address"]["port_value"] for one in listed}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
