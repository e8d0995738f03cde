"""vLLM in a container: the CPU image, or the CUDA image where a GPU is.

The container gets what stands here and nothing else: options choose among values, none of them is a
flag, a path, a network or a privilege.
"""

from __future__ import annotations

import re

from local_agent.domain import Deployment, EngineLoad, HostFacts
from local_agent.engines import ENGINES, metric, unknown_options
from local_agent.ports import ContainerSpec, HttpProbe, Launch
from shared.contracts.apis import APIS

_GIB = 1024**3
_PORT = 8000
_CPU = "vllm/vllm-openai-cpu"
_CUDA = "vllm/vllm-openai"
_VERSION = "v0.32.0"
_CACHE_VOLUME = "iir-hf-cache"
_CACHE = "/root/.cache/huggingface"
_KNOWN_IMAGE = re.compile(r"vllm/vllm-openai(-cpu)?:v\d{1,3}(\.\d{1,3}){1,3}[A-Za-z0-9._-]{0,40}")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_DTYPES = ("auto", "bfloat16", "float16", "float32")
_NUMBER = re.compile(r"[1-9]\d{0,3}")
_FLAG = re.compile(r"true|false")
_PARSER = re.compile(r"[a-z][a-z0-9_]{0,40}")

_OPTIONS = {
    "cpus": (_NUMBER, "a whole number over 0"),
    "dtype": (re.compile("|".join(_DTYPES)), f"one of: {', '.join(_DTYPES)}"),
    "enforce_eager": (_FLAG, "true or false"),
    "image": (re.compile(r"[^\s-]\S{0,254}"), "an image's name with its tag"),
    "kv_cache_gib": (_NUMBER, "a whole number over 0"),
    "memory_gib": (_NUMBER, "a whole number over 0"),
    "repo": (_REPO, "a repository of the hub, like ORG/NAME"),
    "shm_gib": (_NUMBER, "a whole number over 0"),
    "tool_parser": (_PARSER, "the name of one of vLLM's tool parsers, like hermes"),
}


class VllmDocker:
    """Runs `vllm serve` from an allowed image; the weights come from the hub into a named volume."""

    @property
    def needs_weights(self) -> bool:
        """They are pulled into the volume that all its containers share, as is its image."""
        return True

    def unsupported_reason(self, host: HostFacts, deployment: Deployment) -> str | None:
        """Ask for a container engine on this host, an allowed image and a repository."""
        wrong = unknown_options(deployment, _OPTIONS) or _wrong_value(deployment)
        if wrong is not None:
            return wrong
        if not _REPO.fullmatch(_repo(deployment)):
            return "engine vllm_docker needs the option repo, like ORG/NAME"
        return _image_problem(host, deployment) or host.container_problem

    def launch(self, deployment: Deployment, port: int) -> Launch:
        """Return the container; the launcher publishes it on 127.0.0.1:`port`, whatever that is."""
        del port
        option = deployment.options.get
        image = _image(deployment)
        has_gpus = image.startswith(f"{_CUDA}:")
        arguments = [
            *(_repo(deployment), "--host", "0.0.0.0", "--port", str(_PORT)),
            *("--served-model-name", deployment.model),
            *("--max-model-len", str(deployment.context_tokens)),
            *("--max-num-seqs", str(deployment.parallel)),
            *("--dtype", option("dtype", "auto" if has_gpus else "bfloat16")),
        ]
        if option("enforce_eager") == "true":
            arguments.append("--enforce-eager")
        if parser := option("tool_parser"):
            arguments += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
        env = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        if not has_gpus:
            env["VLLM_CPU_KVCACHE_SPACE"] = option("kv_cache_gib", "4")
        return Launch(tuple(arguments), env, container=_container(deployment, image, has_gpus))

    def readiness(self) -> HttpProbe:
        """The image has no health check of its own."""
        return HttpProbe("/health")

    def upstream_name(self, deployment: Deployment) -> str:
        """The model is served under its own id."""
        return deployment.model

    def apis(self, deployment: Deployment) -> tuple[str, ...]:
        """A generating model serves all but embeddings."""
        del deployment
        return tuple(api for api in APIS if api != "embeddings")

    def max_in_flight(self, deployment: Deployment) -> int:
        """It batches so many; more wait inside it."""
        return deployment.parallel

    def parse_load(self, metrics: str) -> EngineLoad:
        """Read vLLM's own metric names."""
        return EngineLoad(
            running=metric(metrics, "vllm:num_requests_running"),
            waiting=metric(metrics, "vllm:num_requests_waiting"),
        )


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


def _wrong_value(deployment: Deployment) -> str | None:
    for name, value in sorted(deployment.options.items()):
        pattern, kind = _OPTIONS[name]
        if not pattern.fullmatch(value):
            return f"option {name} of engine vllm_docker must be {kind}"
    return None


ENGINES.register("vllm_docker")(VllmDocker())
