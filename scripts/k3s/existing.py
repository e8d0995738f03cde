"""A cluster that the user has: its kubeconfig is copied, and only one namespace of it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.k3s.choice import Choice, again
from scripts.k3s.errors import ClusterError
from scripts.k3s.kubeconfig import write_kubeconfig
from scripts.k3s.pins import RELEASE
from scripts.k3s.tools import Tools

HOW = again("--driver existing --kubeconfig FILE")


class Existing:
    """One context of a kubeconfig that the user names."""

    is_ours = False

    def __init__(self, tools: Tools, kubeconfig: Path | None, context: str | None) -> None:
        self._tools = tools
        self._kubeconfig = kubeconfig
        self._context = context

    def ensure(self, choice: Choice) -> None:
        """Copy the context that is asked for, or use the copy that is there."""
        if self._kubeconfig is not None:
            self._copy(self._kubeconfig.expanduser().absolute(), choice)
        elif not self._tools.kubeconfig.is_file():
            raise ClusterError(f"Which cluster? Name its kubeconfig: {HOW}")

    def _copy(self, path: Path, choice: Choice) -> None:
        if not path.is_file():
            raise ClusterError(f"{path} is not there. Name a kubeconfig: {HOW}")
        view = ["kubectl", "--kubeconfig", str(path), "config", "view"]
        only = ["--context", self._context] if self._context else []
        found = self._tools.read([*view, "--raw", "--minify", "--flatten", "-o", "json", *only])
        clusters = (found.value or {}).get("clusters") or []
        if not clusters:
            raise ClusterError(
                f"{path} has no {f'context {self._context}' if self._context else 'current context'}: "
                f"{found.error.strip()}\nkubectl --kubeconfig {path} config get-contexts shows them; "
                f"{HOW.replace('FILE', f'{path} --context NAME')}"
            )
        config: dict[str, Any] = found.value
        server = clusters[0].get("cluster", {}).get("server", "?")
        self._tools.must(
            f"Install llm-d into the namespace {choice.namespace} of the cluster {server} "
            f"(context {config.get('current-context', '?')})? Nothing else of it is touched.",
            otherwise="Say it beforehand: YES=1 " + HOW,
        )
        write_kubeconfig(self._tools, found.output)

    def values(self, choice: Choice) -> list[str]:
        """Return nothing: the Service stays inside, a port is forwarded."""
        return []

    def gpus(self, choice: Choice) -> int:
        """Return how many NVIDIA GPUs the nodes offer to pods."""
        listed = self._tools.read(self._tools.kubectl("get", "nodes", "-o", "json"))
        return gpus_of(listed.value)

    def rest(self, choice: Choice) -> str:
        """Uninstall the release: the cluster is somebody else's, and GPUs are dear."""
        uninstall = self._tools.helm("uninstall", RELEASE, "--namespace", choice.namespace)
        self._tools.act("uninstalling llm-d", [*uninstall, "--ignore-not-found", "--wait"])
        return f"The namespace {choice.namespace} stays, with the models in it."

    def remove(self, choice: Choice) -> None:
        """Leave the cluster alone."""


def gpus_of(nodes: Any) -> int:
    """Return the sum of `nvidia.com/gpu` that nodes offer, from `kubectl get nodes -o json`."""
    items = (nodes or {}).get("items") or []
    offered = [one.get("status", {}).get("allocatable", {}).get("nvidia.com/gpu") for one in items]
    return sum(int(count) for count in offered if count)
