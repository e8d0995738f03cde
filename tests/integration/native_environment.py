"""The environments of the native engines, made once and kept.

`mlx_lm`'s is installed by the same code as `iir-agent engines install`: 400 MB, one to two minutes. What
`torch_mps` needs, in the very versions, is part of vLLM's (`vllm_environment`), which takes 2.5 GB once.
`python -m tests.integration.native_environment` makes what is missing, as CI does before the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

from local_agent.engines import ENGINES
from local_agent.environments import Environments, recipe_of
from local_agent.host.facts import host_facts
from local_agent.ports import Recipe
from tests.integration import vllm_environment
from tests.integration.stack import machine_environment

MLX, TORCH = "mlx_lm", "torch_mps"


def environments() -> Environments:
    """Return those in the user's cache, or below `$IIR_TEST_ENGINES`."""
    return Environments(_root(), machine_environment())


def folders() -> dict[str, Path]:
    """Return by engine where its environment lies, for those that are (wholly) there."""
    found = environments().find(MLX)
    mlx = {MLX: _root() / MLX} if found and found.requirements == _recipe().requirements else {}
    python = vllm_environment.interpreter()
    return mlx if python is None else {**mlx, TORCH: python.parents[1]}


def make() -> None:
    """Make what is missing.

    Raises:
        InstallFailed: by cause.
    """
    vllm_environment.make()
    if MLX not in folders():
        environments().install(
            MLX, _recipe(), host_facts(), lambda step: print(step.what)  # noqa: T201
        )


def _root() -> Path:
    named = machine_environment().get("IIR_TEST_ENGINES")
    return Path(named) if named else Path.home() / ".cache" / "iir-tests" / "engines"


def _recipe() -> Recipe:
    recipe = recipe_of(ENGINES[MLX], host_facts())
    assert isinstance(recipe, Recipe), recipe
    return recipe


if __name__ == "__main__":
    make()
    sys.stdout.write(f"{folders()}\n")
