"""The chart: its profiles, and what runs by one of them with values that are set on top."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.k3s.errors import ClusterError

FOLDER = Path("worker_cluster/chart")
SIMULATOR, ON_GPUS, ON_CPUS = "sim", "vllm", "vllm-cpu"
# in C, where there is one: ten times as fast
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_GPU = "nvidia.com/gpu"
_CRDS = (
    "gateways.gateway.networking.k8s.io",
    "httproutes.gateway.networking.k8s.io",
    "inferencepools.inference.networking.k8s.io",
)
_OBJECTIVES = "inferenceobjectives.llm-d.ai"
_ISTIO = "destinationrules.networking.istio.io"
_ASSIGNED = re.compile(r"((?:\\.|[^,=\\])+)=(\{[^}]*\}|(?:\\.|[^,\\])*)(?:,|$)")
"""One `key=value` of `--set`, as Helm splits it: commas part, unless escaped or in braces."""

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What a release will be, by all of its values."""

    engine: str
    """`sim`, `vllm` or `vllm-cpu`."""
    needs_gpu: bool
    """Whether its model servers ask for NVIDIA's GPUs."""
    crds: tuple[str, ...]
    """Of a gateway: what has to be in the cluster before."""


class Chart:
    """The chart in a checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def profiles(self) -> tuple[str, ...]:
        """Return the names of the profiles.

        Raises:
            ClusterError: the chart is not there.
        """
        found = tuple(sorted(path.stem for path in (self.folder / "values").glob("*.yaml")))
        if not found:
            raise ClusterError(
                f"{self.folder} has no profiles: run this in a checkout of the whole repository."
            )
        return found

    def values_file(self, profile: str) -> Path:
        """Return the file of a profile."""
        return self.folder / "values" / f"{profile}.yaml"

    def runs(self, profile: str, sets: tuple[str, ...]) -> Runs:
        """Return what runs by a profile and what is set on top, each as `--set` of Helm takes it.

        Raises:
            ClusterError: there is no such profile.
        """
        if profile not in self.profiles:
            raise ClusterError(
                f"There is no profile {profile}. There are: {', '.join(self.profiles)}"
            )
        values = _read(self.folder / "values.yaml")
        _merge(values, _read(self.values_file(profile)))
        for path, value in (one for words in sets for one in _assignments(words)):
            _put(values, path, value)
        return _runs(values)


def _runs(values: Values) -> Runs:
    engine = str(_at(values, "engine.type") or "")
    gpus = str(_at(values, "modelServer.gpu.count") or "0")
    crds: tuple[str, ...] = ()
    if _at(values, "mode") == "gateway":
        crds = _CRDS
        crds += (_OBJECTIVES,) if _at(values, "router.objectives") else ()
        crds += (_ISTIO,) if _at(values, "gateway.className") == "istio" else ()
    needs = engine == ON_GPUS and gpus != "0" and _at(values, "modelServer.gpu.resource") == _GPU
    return Runs(engine=engine, needs_gpu=needs, crds=crds)


def _read(path: Path) -> dict[str, Any]:
    return dict(yaml.load(path.read_text(), _LOADER) or {})  # noqa: S506 - a safe one


def _merge(values: dict[str, Any], more: Values) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            _merge(values[name], value)
        else:
            values[name] = value


def _assignments(words: str) -> Iterator[tuple[list[str], object]]:
    """Yield path and value of each part; an entry of a list counts as the list."""
    for found in _ASSIGNED.finditer(words):
        key, _, inner = found[1].partition("[")
        value: object = None if found[2] == "null" else found[2].replace("\\", "")
        yield [one.replace("\\", "") for one in re.split(r"(?<!\\)\.", key)], (
            [value] if inner else value
        )


def _put(values: dict[str, Any], path: list[str], value: object) -> None:
    *outer, last = path
    for name in outer:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    values[last] = value


def _at(values: Values, path: str) -> object:
    found: Any = values
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found
