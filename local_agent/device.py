"""Where an engine computes on this host, as far as that can be told. Pure.

"GPU" is said of an engine that computes on one, where the device itself was found, and of nothing else: a
container on a Mac never does, since Docker Desktop hands it no Metal
(https://docs.docker.com/desktop/features/gpu/), and many virtual machines have no device.
"""

from __future__ import annotations

from collections.abc import Collection

from local_agent.domain import Deployment, HostFacts
from local_agent.ports import Engine

CPU_ONLY = "CPU only"
METAL = "GPU (Metal)"
CUDA = "GPU (CUDA)"
SIMULATED = "nothing (simulated)"
_ON_METAL: Collection[str] = ("llama_cpp", "mlx_lm", "vllm_metal", "vllm_mlx")
_SHOWN_LAYERS = "gpu_layers"


def device(deployment: Deployment, engine: Engine, host: HostFacts) -> str | None:
    """Return where the model computes: `CPU only`, or which GPU; None if that is not known here.

    Args:
        deployment: with the engine that serves it.
        engine: its description.
        host: this host.
    """
    if deployment.engine == "simulated":
        return SIMULATED
    if deployment.external_url is not None:
        return None
    launch = engine.launch(deployment, 0) if deployment.engine == "vllm_docker" else None
    if launch is not None and launch.container is not None:
        has_gpu = launch.container.has_gpus and host.platform == "linux"
        return CUDA if has_gpu else CPU_ONLY
    if deployment.engine == "torch_mps":
        return _of_torch(deployment.options.get("device", "auto"), host)
    if deployment.engine in _ON_METAL:
        is_off = deployment.options.get(_SHOWN_LAYERS) == "0"
        return CPU_ONLY if is_off else _metal(host)
    # a build of vLLM tells where it computes only once it runs
    return None


def _metal(host: HostFacts) -> str | None:
    """Return where an engine computes that takes Metal wherever it is."""
    if not host.is_apple_silicon or host.has_metal is False:
        return CPU_ONLY
    return METAL if host.has_metal else None


def _of_torch(wish: str, host: HostFacts) -> str | None:
    """Return where our program for torch computes: it takes nothing but MPS and the CPU.

    With `auto` it asks its own torch, which nobody else can; told to take MPS it does not start without.
    """
    if wish == "cpu" or _metal(host) == CPU_ONLY:
        return CPU_ONLY
    return _metal(host) if wish == "mps" else None
