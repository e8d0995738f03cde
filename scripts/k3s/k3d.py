"""k3s in a container, by k3d: needs Docker and no root, gone without a trace, the same on a Mac."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scripts.devstack.ports import free_port, holder, is_free
from scripts.devstack.text import say
from scripts.k3s.choice import Choice, again
from scripts.k3s.errors import ClusterError, NotOurs, NotReady
from scripts.k3s.kubeconfig import write_kubeconfig
from scripts.k3s.machine import Machine
from scripts.k3s.pins import CONTAINER_LABEL, K3S_IMAGE, NODE_PORT
from scripts.k3s.tools import Tools, missing

LOOPBACK = "127.0.0.1"


class K3d:
    """A k3d cluster with a name and a label of ours."""

    is_ours = True

    def __init__(self, tools: Tools, machine: Machine) -> None:
        self._tools = tools
        self._machine = machine

    def ensure(self, choice: Choice, remember: Callable[[], None]) -> None:
        """Start the cluster, or make it."""
        self._need_programs()
        found = self._find(choice.cluster)
        if found is None:
            self._need_port(choice.port)
            remember()
            self._create(choice)
        else:
            self._refuse_foreign(choice)
            remember()
            if found.get("serversRunning", 0) < found.get("serversCount", 1):
                start = ["k3d", "cluster", "start", choice.cluster, "--wait", "--timeout", "300s"]
                self._tools.act("starting the cluster", start, hint=_logs(choice.cluster))
        got = self._tools.read(["k3d", "kubeconfig", "get", choice.cluster])
        if got.code == 0:
            write_kubeconfig(self._tools, got.output)
        elif not self._tools.is_dry:
            raise NotReady(f"k3d gives no kubeconfig: {got.reason}\n{_logs(choice.cluster)}")

    def _need_programs(self) -> None:
        for program in ("docker", "k3d"):
            if not self._machine.has(program):
                raise missing(program)
        if not self._machine.docker_answers:
            raise ClusterError("Docker does not answer: start it, or may you use it (docker info)?")

    def _find(self, name: str) -> dict[str, Any] | None:
        listed = self._tools.read(["k3d", "cluster", "list", "-o", "json"])
        if listed.value is None:
            raise ClusterError(
                f"k3d can't list its clusters: {listed.reason}\nDoes Docker answer (docker info)?"
            )
        return next((one for one in listed.value if one.get("name") == name), None)

    def _refuse_foreign(self, choice: Choice) -> None:
        name = choice.cluster
        inspect = ["docker", "inspect", "--format", "{{json .Config.Labels}}", _server(name)]
        owner = (self._tools.read(inspect).value or {}).get(CONTAINER_LABEL)
        if owner != choice.install:
            who = "this `make k3s-up`" if owner is None else "another one's `make k3s-up`"
            made = "did not make" if owner is None else "made"
            raise NotOurs(
                f"A k3d cluster {name} is there that {who} {made}; it is left alone. "
                f"Use another name: {again('--cluster iir-2')}, or hand its kubeconfig over: "
                f"k3d kubeconfig get {name} > FILE, {again('--driver existing --kubeconfig FILE')}"
            )

    def _need_port(self, port: int) -> None:
        if is_free(LOOPBACK, port):
            return
        who = holder(port)
        raise ClusterError(
            f"Port {port} is taken{f' by {who}' if who else ''}. Stop that program, or use another port: "
            f"{again(f'--port {free_port(LOOPBACK, port + 1)}')}"
        )

    def _create(self, choice: Choice) -> None:
        say(f"making the k3d cluster {choice.cluster} ({K3S_IMAGE})")
        create = [
            *("k3d", "cluster", "create", choice.cluster, "--image", K3S_IMAGE),
            *("--servers", "1", "--no-lb", "--api-port", f"{LOOPBACK}:random"),
            # `direct`: without it k3d takes the load balancer's, which one server does not need
            *("--port", f"{LOOPBACK}:{choice.port}:{NODE_PORT}@server:0:direct"),
            *("--runtime-label", f"{CONTAINER_LABEL}={choice.install}@server:0"),
            *("--k3s-arg", "--disable=traefik@server:0"),
            *("--k3s-arg", "--disable=servicelb@server:0"),
            *("--kubeconfig-update-default=false", "--kubeconfig-switch-context=false"),
            *("--wait", "--timeout", "300s"),
        ]
        hint = "Is the registry docker.io reachable, and is there memory for a container of 1 GB?"
        self._tools.act("making the cluster", create, hint=hint)

    def values(self, choice: Choice) -> list[str]:
        """Return that the Service has the port which the container publishes."""
        return ["service.type=NodePort", f"service.nodePort={NODE_PORT}"]

    def gpus(self, choice: Choice) -> int:
        """Return none: k3s's image has no runtime for GPUs."""
        return 0

    def look(self, choice: Choice) -> str:
        """Return what shows the container's log."""
        return _logs(choice.cluster)

    def rest(self, choice: Choice) -> str:
        """Stop the container; images and models stay in it."""
        self._need_programs()
        if self._find(choice.cluster) is not None:
            self._refuse_foreign(choice)
            self._tools.act("stopping the cluster", ["k3d", "cluster", "stop", choice.cluster])
        return f"The cluster {choice.cluster} is stopped; images and models are kept."

    def remove(self, choice: Choice) -> None:
        """Delete the cluster with everything in it."""
        self._need_programs()
        if self._find(choice.cluster) is not None:
            self._refuse_foreign(choice)
            self._tools.act("deleting the cluster", ["k3d", "cluster", "delete", choice.cluster])


def _server(name: str) -> str:
    return f"k3d-{name}-server-0"


def _logs(name: str) -> str:
    return f"What it says: docker logs --tail 50 {_server(name)}"
