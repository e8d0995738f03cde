"""vLLM with the plug-in vllm-metal: vLLM itself on the Apple GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from local_agent.domain import Deployment, EngineLoad, HostFacts
from local_agent.engines import ENGINES
from local_agent.engines import _vllm as vllm
from local_agent.engines._native import (
    APPLE_ONLY,
    LOOPBACK,
    REPO,
    NativeEngine,
    Options,
    folder_name,
)
from local_agent.ports import Launch, Recipe

_PLUGIN = "0.3.0.dev20260822182524"
_CORE = "0.27.1"
# from the projects' own releases, which the plug-in's installer takes: PyPI had an older plug-in only
_CORE_WHEEL = (
    f"vllm @ https://github.com/vllm-project/vllm/releases/download/v{_CORE}/"
    f"vllm-{_CORE}%2Bcpu-cp312-cp312-macosx_11_0_arm64.whl"
)
_RELEASE = f"https://github.com/vllm-project/vllm-metal/releases/expanded_assets/v{_PLUGIN}"


class VllmMetal(NativeEngine):
    """Runs vLLM's API server in an environment with the plug-in, which vLLM finds by itself."""

    name = "vllm_metal"
    options: ClassVar[Options] = {
        **REPO,
        **{name: vllm.OPTIONS[name] for name in ("dtype", "tool_parser")},
    }

    def recipe(self, host: HostFacts) -> Recipe | str:
        """Its packages are for Python 3.12 and macOS 15 on Apple Silicon."""
        if not host.is_apple_silicon:
            instead = "here use engine vllm or vllm_docker"
            return APPLE_ONLY.format(engine="vllm-metal", instead=instead)
        return Recipe(
            requirements=(_CORE_WHEEL, f"vllm-metal=={_PLUGIN}"),
            places=(_RELEASE,),
            pythons=("3.12",),
            modules=("vllm", "vllm_metal"),
            size_mb=3000,
        )

    def launch(self, deployment: Deployment, port: int) -> Launch:
        """Return the server's command line."""
        flags = vllm.serve_flags(deployment, host=LOOPBACK, port=port, dtype="auto")
        launch = self.module(
            "vllm.entrypoints.openai.api_server",
            deployment,
            ("--model", folder_name(deployment), *flags),
        )
        # else its processes meet at an address of the network
        return replace(launch, env={**launch.env, **vllm.QUIET, "VLLM_HOST_IP": LOOPBACK})

    def apis(self, deployment: Deployment) -> tuple[str, ...]:
        """As vLLM's."""
        return vllm.VllmServer().apis(deployment)

    def parse_load(self, metrics: str) -> EngineLoad:
        """As vLLM's."""
        return vllm.VllmServer().parse_load(metrics)


ENGINES.register("vllm_metal")(VllmMetal())
