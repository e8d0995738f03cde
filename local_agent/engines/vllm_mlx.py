"""vllm-mlx: a server on MLX with vLLM's manners, for several clients at once on a Mac."""

from __future__ import annotations

import re
from typing import ClassVar

from local_agent.domain import Deployment, EngineLoad, HostFacts
from local_agent.engines import ENGINES, metric
from local_agent.engines._native import (
    APPLE_ONLY,
    LOOPBACK,
    PYTHONS,
    REPO,
    NativeEngine,
    Options,
    folder_name,
)
from local_agent.ports import Launch, Recipe

_PARSER = re.compile(r"[a-z][a-z0-9_]{0,40}")


class VllmMlx(NativeEngine):
    """Runs `vllm-mlx serve`."""

    name = "vllm_mlx"
    options: ClassVar[Options] = {
        **REPO,
        "tool_parser": (_PARSER, "the name of a tool parser, like hermes"),
    }

    def recipe(self, host: HostFacts) -> Recipe | str:
        """It needs Metal."""
        if not host.is_apple_silicon:
            return APPLE_ONLY.format(engine="vllm-mlx", instead="here use engine mlx_lm or vllm")
        return Recipe(
            requirements=("vllm-mlx==0.6.0",),
            pythons=PYTHONS,
            modules=("vllm_mlx.cli",),
            size_mb=2500,
        )

    def launch(self, deployment: Deployment, port: int) -> Launch:
        """Return the server's command line."""
        arguments = [
            *("serve", folder_name(deployment), "--served-model-name", deployment.model),
            *("--host", LOOPBACK, "--port", str(port), "--offline"),
            *("--continuous-batching", "--max-num-seqs", str(deployment.parallel)),
            "--enable-metrics",
        ]
        if parser := deployment.options.get("tool_parser"):
            arguments += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
        return self.module("vllm_mlx.cli", deployment, tuple(arguments))

    def apis(self, deployment: Deployment) -> tuple[str, ...]:
        """Embeddings need a model of their own there."""
        del deployment
        return ("chat", "completions", "responses", "messages")

    def parse_load(self, metrics: str) -> EngineLoad:
        """Read vllm-mlx's own metric names."""
        return EngineLoad(
            running=metric(metrics, "vllm_mlx_scheduler_running_requests"),
            waiting=metric(metrics, "vllm_mlx_scheduler_waiting_requests"),
        )


ENGINES.register("vllm_mlx")(VllmMlx())
