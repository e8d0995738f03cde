"""A cluster that the user has: its kubeconfig is copied, and only one namespace of it is used."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.k3s.choice import Choice, again
from scripts.k3s.errors import ClusterError, Unreachable
from scripts.k3s.kubeconfig import write_kubeconfig
from scripts.k3s.release import namespace_owner, uninstall
from scripts.k3s.tools import Done, Tools

HOW = again("--driver existing --kubeconfig FILE")


class Existing:
    """One context of a kubeconfig that the user names."""

    is_ours = False

    def __init__(
        self, tools: Tools, kubeconfig: Path | None, context: str | None, *, has_release: bool
    ) -> None:
        self._tools = tools
        self._has_release = has_release
        self._kubeconfig = kubeconfig
        self._context = context

    def ensure(self, choice: Choice, remember: Callable[[], None]) -> None:
        """Copy the context that is asked for, or use the copy that is there."""
        if self._kubeconfig is not None:
            self._copy(self._kubeconfig.expanduser().absolute(), choice)
        elif not self._tools.kubeconfig.is_file():
            raise ClusterError(f"Which cluster? Name its kubeconfig: {HOW}")
        if not self._tools.is_dry:
            self._need_answer(choice.namespace)
        remember()

    def _need_answer(self, namespace: str) -> None:
        try:
            namespace_owner(self._tools, namespace)
        except Unreachable:
            if not self._has_release:  # the copy leads nowhere
                self._tools.kubeconfig.unlink()
            raise

    def _copy(self, path: Path, choice: Choice) -> None:
        if not path.is_file():
            raise ClusterError(f"{path} is not there. Name a kubeconfig: {HOW}")
        found = self._tools.read([*_view(path), *self._only()])
        server = _server(found)
        if not server:
            raise ClusterError(
                f"{path} has no {f'context {self._context}' if self._context else 'current context'}: "
                f"{found.reason}\nkubectl --kubeconfig {path} config get-contexts shows them; "
                f"{HOW.replace('FILE', f'{path} --context NAME')}"
            )
        self._refuse_another(server)
        self._tools.must(
            f"Install llm-d into the namespace {choice.namespace} of the cluster {server} "
            f"(context {found.value.get('current-context', '?')})? Nothing else of it is touched.",
            otherwise="Say it beforehand: YES=1 " + HOW,
        )
        write_kubeconfig(self._tools, found.output)

    def _only(self) -> list[str]:
        return ["--context", self._context] if self._context else []

    def _refuse_another(self, server: str) -> None:
        """Raise `ClusterError` if llm-d was brought up in another cluster, which would be forgotten."""
        own = self._tools.kubeconfig
        before = (
            _server(self._tools.read(_view(own))) if self._has_release and own.is_file() else ""
        )
        if before and before != server:
            raise ClusterError(
                f"llm-d was brought up in the cluster {before}, not in {server}. Take it down there first: "
                "PURGE=1 make k3s-down, then this again."
            )

    def values(self, choice: Choice) -> list[str]:
        """Return nothing: the Service stays inside, a port is forwarded."""
        return []

    def gpus(self, choice: Choice) -> int:
        """Return how many NVIDIA GPUs the nodes offer to pods."""
        reach = self._tools.kubectl()
        if self._kubeconfig is not None and not self._tools.kubeconfig.is_file():  # a dry run
            path = self._kubeconfig.expanduser().absolute()
            reach = ["kubectl", "--kubeconfig", str(path), *self._only()]
        return gpus_of(self._tools.read([*reach, "get", "nodes", "-o", "json"]).value)

    def look(self, choice: Choice) -> str:
        """Return what shows the nodes."""
        return f"What it says: {shlex.join(self._tools.kubectl('get', 'nodes'))}"

    def rest(self, choice: Choice) -> str:
        """Uninstall the release: the cluster is somebody else's, and GPUs are dear."""
        uninstall(self._tools, choice)
        return f"The namespace {choice.namespace} stays, with the models in it."

    def remove(self, choice: Choice) -> None:
        """Leave the cluster alone."""


def _view(path: Path) -> list[str]:
    flags = ("--raw", "--minify", "--flatten", "-o", "json")
    return ["kubectl", "--kubeconfig", str(path), "config", "view", *flags]


def _server(view: Done) -> str:
    """Return the address of the cluster in a kubeconfig with one context; "" if it has none."""
    clusters = (view.value or {}).get("clusters") or [{}]
    return str(clusters[0].get("cluster", {}).get("server", ""))


def gpus_of(nodes: Any) -> int:
    """Return the sum of `nvidia.com/gpu` that nodes offer, from `kubectl get nodes -o json`."""
    items = (nodes or {}).get("items") or []
    offered = [one.get("status", {}).get("allocatable", {}).get("nvidia.com/gpu") for one in items]
    return sum(int(count) for count in offered if count)
