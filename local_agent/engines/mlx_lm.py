"""MLX's own server: models in MLX's format on the Apple GPU; on Linux on the CPU, for tests."""

from __future__ import annotations

from typing import ClassVar

from local_agent.domain import Deployment, HostFacts
from local_agent.engines import ENGINES
from local_agent.engines._native import (
    COUNT,
    LOOPBACK,
    PYTHONS,
    REPO,
    NativeEngine,
    Options,
    folder_name,
)
from local_agent.ports import Launch, Recipe

_NOT_HERE = (
    "MLX runs on Apple Silicon, and on Linux on the CPU; use engine llama_cpp on this host"
    " (on an Apple Silicon Mac: with a Python for arm64, not one under Rosetta)"
)
_OPTIONS = {"prompt_cache_entries": "--prompt-cache-size", "max_tokens": "--max-tokens"}


class MlxLm(NativeEngine):
    """Runs `mlx_lm.server`, held to the deployment's folder; see `local_agent.programs.iir_mlx`."""

    name = "mlx_lm"
    options: ClassVar[Options] = {**REPO, **dict.fromkeys(_OPTIONS, COUNT)}

    def recipe(self, host: HostFacts) -> Recipe | str:
        """MLX has packages for macOS on arm64, and for Linux without a GPU."""
        if not host.is_apple_silicon and host.platform != "linux":
            return _NOT_HERE
        mlx = "mlx==0.32.4" if host.is_apple_silicon else "mlx[cpu]==0.32.4"
        return Recipe(
            requirements=("mlx-lm==0.32.2", mlx, "transformers==5.24.0"),
            pythons=PYTHONS,
            modules=("mlx_lm.server",),
            size_mb=400,
        )

    def launch(self, deployment: Deployment, port: int) -> Launch:
        """Return the server's command line; `context` it can't be held to."""
        batch = str(deployment.parallel)
        arguments = [
            *("--name", deployment.model, "--model", folder_name(deployment)),
            *("--host", LOOPBACK, "--port", str(port)),
            *("--decode-concurrency", batch, "--prompt-concurrency", batch),
            *("--log-level", "WARNING"),  # below it tells of each request
        ]
        for name, flag in sorted(_OPTIONS.items()):
            if name in deployment.options:
                arguments += [flag, deployment.options[name]]
        return self.program("iir_mlx", deployment, tuple(arguments))

    def apis(self, deployment: Deployment) -> tuple[str, ...]:
        """It has no other routes."""
        del deployment
        return ("chat", "completions")


ENGINES.register("mlx_lm")(MlxLm())
