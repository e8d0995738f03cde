"""Which cluster and which profile: what is asked for, what was chosen before, what fits the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from scripts.k3s.chart import SIMULATOR, Chart
from scripts.k3s.errors import ClusterError
from scripts.k3s.machine import Machine

DRIVERS = ("native", "k3d", "existing")
GPU_PROFILE, CPU_PROFILE = "gpu-small", "cpu"
DISK_GB = {SIMULATOR: 3.0}
OTHERS_DISK_GB = 20.0  # vLLM's images take 10 GB and more


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for; None: not said."""

    driver: str | None = None
    profile: str | None = None
    sets: tuple[str, ...] = ()
    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None
    cluster: str | None = None
    port: int | None = None
    forget: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is done; kept on disk, so that the next command does the same."""

    driver: str
    install: str
    """A random id of this installation, by which a label tells what is ours."""
    profile: str = ""
    engine: str = ""
    """What runs: the chart's `engine.type`, by the profile and what is set on top."""
    needs_gpu: bool = False
    sets: tuple[str, ...] = ()
    namespace: str = "llm-d"
    cluster: str = "iir"
    port: int = 18000
    has_namespace: bool = False
    """Whether we made the namespace, so that it must not be lost sight of."""
    endpoint: str = ""

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(asdict(self), indent=1))
        draft.replace(path)

    @classmethod
    def read(cls, path: Path) -> Choice | None:
        """Return what was chosen before; None if nothing was."""
        try:
            found = json.loads(path.read_text())
            return cls(**{**found, "sets": tuple(found["sets"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            raise ClusterError(
                f"{path} can't be read. It says which cluster is ours: restore it, or remove it and "
                "take down by hand what `k3d cluster list` or `kubectl get namespaces` shows."
            ) from None


def choose_cluster(
    wish: Wish, machine: Machine, before: Choice | None, chart: Chart, new_id: Callable[[], str]
) -> Choice:
    """Return the choice of the cluster, without a profile unless it was made before.

    Args:
        wish: what is asked for.
        machine: what this machine is.
        before: what was chosen before; its id stays, whatever is chosen anew.
        chart: what could be installed.
        new_id: makes an id that nobody else has.

    Raises:
        ClusterError: the wish contradicts what runs, or nothing fits the machine.
    """
    if before is not None and (before.driver != "existing" or before.has_namespace):
        _refuse_moves(wish, before)
        return replace(before, namespace=wish.namespace or before.namespace)
    usual = Choice(
        driver=wish.driver or _fitting_driver(wish, machine, chart),
        install=before.install if before else new_id(),
    )
    return replace(
        usual,
        namespace=wish.namespace or usual.namespace,
        cluster=wish.cluster or usual.cluster,
        port=wish.port or usual.port,
    )


def _refuse_moves(wish: Wish, before: Choice) -> None:
    for name in ("driver", "namespace", "cluster", "port"):
        asked, made = getattr(wish, name), getattr(before, name)
        may_change = name == "namespace" and not before.has_namespace
        if asked is not None and asked != made and not may_change:
            raise ClusterError(
                f"{name} is {made} since the first `make k3s-up`, not {asked}. "
                "Start over: PURGE=1 make k3s-down, then this again."
            )


def _fitting_driver(wish: Wish, machine: Machine, chart: Chart) -> str:
    if wish.kubeconfig is not None:
        return "existing"
    wanted = chart.runs(wish.profile or GPU_PROFILE, _merged((), wish.sets))
    if machine.system == "Linux" and machine.gpus and wanted.needs_gpu:
        return "native"  # k3d would need an image of its own to hand on a GPU
    if machine.docker_answers:
        return "k3d"
    if machine.system == "Linux":
        return "native"
    raise ClusterError(
        "No cluster fits this machine: k3s runs on Linux, k3d needs Docker, and Docker does not answer.\n"
        "Start Docker (Docker Desktop, Colima, OrbStack), or name a cluster that you have:\n"
        "  K3S_ARGS='--driver existing --kubeconfig FILE' make k3s-up"
    )


def choose_profile(wish: Wish, machine: Machine, choice: Choice, gpus: int, chart: Chart) -> Choice:
    """Return the choice with a profile, its further values, and what runs by both.

    Args:
        wish: what is asked for.
        machine: what this machine is.
        choice: the cluster, and what was chosen before.
        gpus: how many GPUs the cluster has or will have.
        chart: what has the profiles.

    Raises:
        ClusterError: there is no such profile, or it can't run here.
    """
    fitting = GPU_PROFILE if gpus else CPU_PROFILE
    profile = wish.profile or choice.profile or fitting
    keeps = profile == choice.profile and not wish.forget
    sets = _merged(choice.sets if keeps else (), wish.sets)
    runs = chart.runs(profile, sets)
    if runs.needs_gpu and not gpus:
        by_hand = "" if chart.runs(profile, ()).needs_gpu else f" --set engine.type={runs.engine}"
        raise ClusterError(_no_gpu(f"{profile}{by_hand}", machine, choice))
    need = DISK_GB.get(runs.engine, OTHERS_DISK_GB)
    if choice.driver != "existing" and machine.free_disk_gb < need:
        raise ClusterError(
            f"{machine.free_disk_gb:.0f} GB of disk are free, {need:.0f} GB are needed for the images of "
            f"the profile {profile} (engine {runs.engine}). Make room, or try the simulator: "
            f"{again('--profile sim')}"
        )
    return replace(choice, profile=profile, sets=sets, engine=runs.engine, needs_gpu=runs.needs_gpu)


def _no_gpu(profile: str, machine: Machine, choice: Choice) -> str:
    """Return why not; `profile` is what `--profile` takes, with a value that asks for the GPU."""
    if choice.driver == "k3d" and machine.gpus:
        return (
            f"{profile} needs a GPU, and k3d hands none on. k3s itself does: PURGE=1 make k3s-down, then "
            f"{again(f'--driver native --profile {profile}')}"
        )
    where = (
        "no node of the cluster offers one"
        if choice.driver == "existing"
        else "nvidia-smi shows none"
    )
    return (
        f"{profile} needs a GPU; {where}. Install the driver (nvidia-smi has to work), "
        f"or use the processor: {again('--profile cpu --forget')}"
    )


def _merged(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    """Return all `key=value`, a later one in place of an earlier of the same key."""
    for one in new:
        if "=" not in one.lstrip("="):
            raise ClusterError(
                f"--set {one}: it has to be KEY=VALUE, e.g. --set model.maxModelLen=2048"
            )
    return tuple(
        f"{key}={value}" for key, value in dict(one.split("=", 1) for one in (*old, *new)).items()
    )


def other_model(more: str = "") -> str:
    """Return the line for another model; the profile's capacity check knows its own model only."""
    return again(f"--set model.name=ORG/NAME --set capacityCheck.enabled=false{more}")


def again(arguments: str) -> str:
    """Return the line that runs `make k3s-up` with arguments."""
    return f"K3S_ARGS='{arguments}' make k3s-up"
