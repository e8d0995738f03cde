"""Install the project into an image, from the locked packages: what the Dockerfiles run.

`packages router` (or `agent`) makes the environment with what requirements/router.txt pins, hash by
hash; `project` adds the project itself, as a wheel. Two steps, so that a change of the code does not
install the packages again. Standard library only, and the pip of the build stage's Python.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_IMAGES = ("agent", "router")


def main() -> int:
    """Do one step; 0 if it is done."""
    parser = argparse.ArgumentParser(description="Install the project into an image.")
    parser.add_argument("--into", type=Path, required=True, help="the environment's folder")
    steps = parser.add_subparsers(dest="step", required=True)
    packages = steps.add_parser("packages", help="the locked packages of an image")
    packages.add_argument("image", choices=_IMAGES)
    steps.add_parser("project", help="the project itself")
    asked = parser.parse_args()
    try:
        if asked.step == "packages":
            install_packages(asked.into, asked.image)
        else:
            install_project(asked.into)
    except subprocess.CalledProcessError as failure:
        return int(failure.returncode)
    return 0


def install_packages(into: Path, image: str) -> None:
    """Make the environment and install what is locked for the image."""
    venv.create(into, symlinks=True, with_pip=False)
    _install_locked(into, image)


def install_project(into: Path) -> None:
    """Build the project's wheel with the locked build tools and install it."""
    with tempfile.TemporaryDirectory() as scratch:
        tools, wheels = Path(scratch, "tools"), Path(scratch, "wheels")
        venv.create(tools, symlinks=True, with_pip=False)
        _install_locked(tools, "build")
        _pip(tools, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT))
        _pip(into, "install", "--no-deps", *(str(wheel) for wheel in wheels.glob("*.whl")))


def _install_locked(into: Path, name: str) -> None:
    lock = ROOT / "requirements" / f"{name}.txt"
    _pip(into, "install", "--require-hashes", "--only-binary", ":all:", "-r", str(lock))


def _pip(into: Path, *arguments: str) -> None:
    options = ["--python", str(into / "bin" / "python"), "--disable-pip-version-check"]
    quiet = ["--quiet", "--no-cache-dir", "--root-user-action", "ignore"]
    command, *rest = arguments
    extra = quiet if command == "install" else quiet[:2]
    subprocess.run(
        [sys.executable, "-m", "pip", *options, command, *extra, *rest], check=True, cwd=ROOT
    )


if __name__ == "__main__":
    sys.exit(main())
