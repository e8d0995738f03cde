"""What engines share that load a model's folder in a Python environment which the agent installs."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from local_agent.domain import REPOSITORY, Deployment, EngineLoad, HostFacts
from local_agent.engines._vllm import wrong_option
from local_agent.ports import HttpProbe, Launch, Recipe

Options = Mapping[str, tuple[re.Pattern[str], str]]

LOOPBACK = "127.0.0.1"
REPO: Options = {"repo": (REPOSITORY, "a repository of the hub, like ORG/NAME")}
COUNT = (re.compile(r"[1-9]\d{0,6}"), "a whole number over 0")
PYTHONS = ("3.12", "3.13", "3.11")
APPLE_ONLY = "{engine} runs on Apple Silicon only; {instead}"

# all that it needs is there, and nobody is told that it runs
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# isolated: neither the agent's PYTHONPATH nor a folder of downloads gets into the import path
_ISOLATED = ("-I", "-B", "-u")
_PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
_RUN = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1));"
    " runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


class NativeEngine(ABC):
    """The part of an engine's description that does not depend on which of them it is.

    A folder of the user's or a pulled repository is served; the engine never hears of another model.
    """

    name: ClassVar[str]
    options: ClassVar[Options] = REPO

    @abstractmethod
    def recipe(self, host: HostFacts) -> Recipe | str:
        """Return what its environment is made of; a text says why it can't run here."""

    def needs_weights(self, deployment: Deployment) -> bool:
        """A repository is pulled; a folder is used where it is."""
        return "repo" in deployment.options

    def unsupported_reason(self, host: HostFacts, deployment: Deployment) -> str | None:
        """Ask for a host that it runs on, good options, one model to load, and the environment."""
        recipe = self.recipe(host)
        if isinstance(recipe, str):
            return recipe
        wrong = wrong_option(deployment, self.options) or _wrong_model(deployment)
        if wrong is not None or self.name in host.environments:
            return wrong
        return (
            f"engine {self.name} is not installed ({recipe.size_mb / 1000:.1f} GB);"
            f" install it: iir-agent engines install {self.name}"
        )

    def readiness(self) -> HttpProbe:
        """`/health` is 200 only once the weights are loaded."""
        return HttpProbe("/health")

    def upstream_name(self, deployment: Deployment) -> str:
        """The model is served under its own id."""
        return deployment.model

    def max_in_flight(self, deployment: Deployment) -> int:
        """It batches so many; more wait inside it."""
        return deployment.parallel

    def parse_load(self, metrics: str) -> EngineLoad:
        """It tells nothing; what the agent sent it is its load."""
        del metrics
        return EngineLoad()

    def module(self, module: str, deployment: Deployment, arguments: tuple[str, ...]) -> Launch:
        """Return how to run a module of the environment; the model's folder is its `./{name}`."""
        return self._launch(deployment, ("-m", module, *arguments))

    def program(self, program: str, deployment: Deployment, arguments: tuple[str, ...]) -> Launch:
        """Return how to run one of our programs there; see `local_agent.programs`."""
        return self._launch(deployment, ("-c", _RUN, str(_PROGRAMS), program, *arguments))

    def _launch(self, deployment: Deployment, words: tuple[str, ...]) -> Launch:
        folder = deployment.weights
        assert folder is not None  # noqa: S101 - what is not there is not started
        return Launch(
            argv=(*_ISOLATED, *words),
            env=QUIET,
            cwd=str(folder.parent),
            environment=self.name,
        )


def folder_name(deployment: Deployment) -> str:
    """Return the model's folder relative to where it lies, so that no log and no error holds a path."""
    assert deployment.weights is not None  # noqa: S101 - what is not there is not started
    return f"./{deployment.weights.name}"


def _wrong_model(deployment: Deployment) -> str | None:
    engine, folder = deployment.engine, deployment.weights
    if folder is None and "repo" not in deployment.options:
        return (
            f"engine {engine} needs as source a folder of this host with a Hugging Face model"
            " (config.json, *.safetensors), or the option repo, like ORG/NAME"
        )
    if folder is not None and folder.suffix.lower() == ".gguf":
        return f"engine {engine} loads folders with a Hugging Face model; for GGUF use engine llama_cpp"
    return None
