"""The engines by name, and what their descriptions share."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from local_agent.domain import Deployment
from local_agent.ports import Engine, Launch
from shared.kit.exposition import total
from shared.kit.plugins import Plugins

ENGINES: Plugins[Engine] = Plugins("engine", __name__)

AUTO = "auto"
_ROOT = Path(__file__).resolve().parents[2]


def choose_engine(deployment: Deployment) -> str:
    """Return the engine's name: the configured one, or for `auto` the one that fits.

    A URL means `external`, everything else is GGUF so far and means `llama_cpp`.
    """
    if deployment.engine != AUTO:
        return deployment.engine
    return "external" if deployment.external_url else "llama_cpp"


def python_launch(module: str, arguments: Iterable[str]) -> Launch:
    """Return how to run one of our modules with this interpreter.

    `-m` puts the working directory first in the child's import path: it is our own root, and not
    a folder that holds downloads.
    """
    return Launch(argv=(sys.executable, "-m", module, *arguments), cwd=str(_ROOT))


def unknown_options(deployment: Deployment, known: Collection[str]) -> str | None:
    """Say which options the engine does not have; None if it has them all."""
    unknown = sorted(set(deployment.options) - set(known))
    if not unknown:
        return None
    return (
        f"engine {deployment.engine} has no option {', '.join(unknown)};"
        f" it has: {', '.join(sorted(known)) or 'none'}"
    )


def metric(text: str, name: str) -> int:
    """Return the sum of a metric over its labels in Prometheus text; 0 if it is not there."""
    return int(total(text, name) or 0)
