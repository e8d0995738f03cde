"""vLLM in a container: the CPU image, or the CUDA image where a GPU is.

The container gets what stands here and nothing else: options choose among values, none of them is a
flag, a path, a network or a privilege.
"""

from __future__ import annotations

import re

from local_agent.domain import Deployment, HostFacts
from local_agent.engines import ENGINES
from local_agent.engines._vllm import (
    NUMBER,
    OPTIONS,
    QUIET,
    Options,
    VllmServer,
    is_repo,
    kv_cache_gib,
    serve_flags,
    wrong_option,
)
from local_agent.ports import ContainerSpec, Launch

_GIB = 1024**3
_PORT = 8000
_CPU = "vllm/vllm-openai-cpu"
_CUDA = "vllm/vllm-openai"
_VERSION = "v0.32.0"
_CACHE_VOLUME = "iir-hf-cache"
_CACHE = "/root/.cache/huggingface"
_KNOWN_IMAGE = re.compile(r"vllm/vllm-openai(-cpu)?:v\d{1,3}(\.\d{1,3}){1,3}[A-Za-z0-9._-]{0,40}")

_OPTIONS: Options = {
    **OPTIONS,
    "cpus": NUMBER,
    "image": (re.compile(r"[^\s-]\S{0,254}"), "an image's name with its tag"),
    "memory_gib": NUMBER,
    "shm_gib": NUMBER,
}


class VllmDocker(VllmServer):
    """Runs `vllm serve` from an allowed image; the weights come from the hub into a named volume."""

    def needs_weights(self, deployment: Deployment) -> bool:
        """They are pulled into the volume that all its containers share, as is its image."""
        del deployment
        return True

    def unsupported_reason(self, host: HostFacts, deployment: Deployment) -> str | None:
        """Ask for a container engine on this host, an allowed image and a repository."""
        wrong = wrong_option(deployment, _OPTIONS)
        if wrong is not None:
            return wrong
        if not is_repo(_repo(deployment)):
            return "engine vllm_docker needs the option repo, like ORG/NAME"
        return _image_problem(host, deployment) or host.container_problem

    def launch(self, deployment: Deployment, port: int) -> Launch:
        """Return the container; the launcher publishes it on 127.0.0.1:`port`, whatever that is."""
        del port
        image = _image(deployment)
        has_gpus = image.startswith(f"{_CUDA}:")
        dtype = "auto" if has_gpus else "bfloat16"
        flags = serve_flags(deployment, host="0.0.0.0", port=_PORT, dtype=dtype)
        env = dict(QUIET)
        if not has_gpus:
            env["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib(deployment))
        container = _container(deployment, image, has_gpus)
        return Launch((_repo(deployment), *flags), env, container=container)


def _container(deployment: Deployment, image: str, has_gpus: bool) -> ContainerSpec:
    option = deployment.options.get
    memory, cpus = option("memory_gib"), option("cpus")
    return ContainerSpec(
        image=image,
        port=_PORT,
        repo=_repo(deployment),
        volumes={_CACHE_VOLUME: _CACHE},
        shm_bytes=int(option("shm_gib", "4")) * _GIB,
        memory_bytes=int(memory) * _GIB if memory else None,
        cpus=float(cpus) if cpus else None,
        # vLLM binds its threads to cores and their memory, which the default profile forbids
        capabilities=() if has_gpus else ("SYS_NICE",),
        security=(
            ("no-new-privileges",) if has_gpus else ("no-new-privileges", "seccomp=unconfined")
        ),
        has_gpus=has_gpus,
    )


def _repo(deployment: Deployment) -> str:
    return deployment.options.get("repo", deployment.model)


def _image(deployment: Deployment) -> str:
    return deployment.options.get("image", f"{_CPU}:{_VERSION}")


def _image_problem(host: HostFacts, deployment: Deployment) -> str | None:
    image = _image(deployment)
    if image in host.images:
        return None
    if not _KNOWN_IMAGE.fullmatch(image):
        return (
            f"the image {image} is not allowed; allowed: {_CPU}:vX.Y.Z, {_CUDA}:vX.Y.Z"
            " and what the setting AGENT_IMAGES names"
        )
    is_arm = host.arch in {"arm64", "aarch64"}
    if is_arm and image.startswith(f"{_CPU}:") and not image.endswith("-arm64"):
        # the amd64 image would start under emulation and die of an illegal instruction
        return f"this host is arm64; set the option image to {image}-arm64"
    return None


ENGINES.register("vllm_docker")(VllmDocker())
