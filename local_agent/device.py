"""Where an engine computes on this host, as far as that can be told. Pure.

"GPU" is said of what surely uses one, and of nothing else: a container on a Mac never does, since Docker
Desktop hands it no Metal (https://docs.docker.com/desktop/features/gpu/).
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
    if deployment.engine in _ON_METAL:
        is_off = deployment.options.get(_SHOWN_LAYERS) == "0"
        return METAL if host.is_apple_silicon and not is_off else CPU_ONLY
    # a build of vLLM or torch tells where it computes only once it runs
    return None
