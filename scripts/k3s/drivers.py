"""The three ways to a cluster, as one seam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from scripts.k3s.choice import Choice


class Driver(Protocol):
    """A cluster: found or made, and what is ours of it taken away."""

    @property
    def is_ours(self) -> bool:
        """Tell whether the cluster itself was made by us, and may be removed."""
        ...

    def ensure(self, choice: Choice, remember: Callable[[], None]) -> None:
        """Bring the cluster to where it answers, and write our kubeconfig.

        Args:
            choice: what was chosen.
            remember: keeps the choice; called when all is agreed to and nothing is made yet.

        Raises:
            ClusterError: it can't be had.
        """
        ...

    def values(self, choice: Choice) -> list[str]:
        """Return what the chart has to know of this kind of cluster, as `key=value`."""
        ...

    def gpus(self, choice: Choice) -> int:
        """Return how many GPUs a pod could have here."""
        ...

    def look(self, choice: Choice) -> str:
        """Return how to see why its nodes do not come up."""
        ...

    def rest(self, choice: Choice) -> str:
        """Let the cluster use nothing until the next `up`; return what was left running, in words."""
        ...

    def remove(self, choice: Choice) -> None:
        """Take the cluster away if it is ours; raises `NotOurs` if it is another's by now."""
        ...
