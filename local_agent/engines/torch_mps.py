"""PyTorch: a small server of ours on transformers, on MPS where there is one, else on the CPU.

The last choice on a Mac: slower than MLX or llama.cpp, and for models that neither of them has.
"""

from __future__ import annotations

import re
from typing import ClassVar

from local_agent.domain import Deployment, EngineLoad, HostFacts
from local_agent.engines import ENGINES, metric
from local_agent.engines._native import (
    COUNT,
    PYTHONS,
    REPO,
    NativeEngine,
    Options,
    folder_name,
)
from local_agent.ports import Launch, Recipe

_DEVICES = ("auto", "mps", "cpu")
_DTYPES = ("auto", "float16", "bfloat16", "float32")
_STALLS_ABOVE = "4096"
_INTEL_MAC = "PyTorch has no packages for Macs without Apple Silicon; use engine llama_cpp"


class TorchMps(NativeEngine):
    """Runs `local_agent.programs.iir_torch`."""

    name = "torch_mps"
    options: ClassVar[Options] = {
        **REPO,
        "device": (re.compile("|".join(_DEVICES)), f"one of: {', '.join(_DEVICES)}"),
        "dtype": (re.compile("|".join(_DTYPES)), f"one of: {', '.join(_DTYPES)}"),
        "max_prompt_tokens": COUNT,
        "threads": COUNT,
    }

    def recipe(self, host: HostFacts) -> Recipe | str:
        """The package of an index is for NVIDIA GPUs on Linux, which takes much more."""
        is_mac = host.platform == "darwin"
        if is_mac and host.arch != "arm64":
            return _INTEL_MAC
        return Recipe(
            requirements=("torch==2.13.0", "transformers==5.19.0", "uvicorn==0.54.0"),
            pythons=(*PYTHONS, "3.10"),
            modules=("torch", "transformers", "uvicorn"),
            size_mb=1200 if is_mac else 6000,
        )

    def unsupported_reason(self, host: HostFacts, deployment: Deployment) -> str | None:
        """Ask for what all of them ask for, and for no MPS on other hosts than a Mac."""
        if deployment.options.get("device") == "mps" and host.platform != "darwin":
            return "option device of engine torch_mps: there is MPS on Macs only; use auto or cpu"
        return super().unsupported_reason(host, deployment)

    def launch(self, deployment: Deployment, port: int) -> Launch:
        """Return the server program's command line."""
        option = deployment.options.get
        arguments = [
            *("--name", deployment.model, "--model", folder_name(deployment)),
            *("--port", str(port), "--context-tokens", str(deployment.context_tokens)),
            *("--max-prompt-tokens", option("max_prompt_tokens", _STALLS_ABOVE)),
        ]
        for name in ("device", "dtype", "threads"):
            if name in deployment.options:
                arguments += [f"--{name}", deployment.options[name]]
        return self.program("iir_torch", deployment, tuple(arguments))

    def apis(self, deployment: Deployment) -> tuple[str, ...]:
        """It has no other routes."""
        del deployment
        return ("chat", "completions")

    def max_in_flight(self, deployment: Deployment) -> int:
        """It generates for one request after the other."""
        del deployment
        return 1

    def parse_load(self, metrics: str) -> EngineLoad:
        """Read its own metric names."""
        return EngineLoad(
            running=metric(metrics, "iir_torch_requests_running"),
            waiting=metric(metrics, "iir_torch_requests_waiting"),
        )


ENGINES.register("torch_mps")(TorchMps())
