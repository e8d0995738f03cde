"""Programs that are brought for tests: from PATH if they will do, else once, and only what was expected."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.chart_tools import Tool, ToolError, find, get

PROGRAM = b"#!/bin/sh\necho v3.15.0\n"


class Packages:
    """A place that packages come from; counts how often."""

    def __init__(self) -> None:
        self.asked = 0

    def bring(self, package: str, folder: Path) -> Path:
        self.asked += 1
        (folder / "package").write_bytes(PROGRAM)
        return folder / "package"


def unpack(package: Path, program: Path) -> None:
    program.write_bytes(package.read_bytes())


@pytest.fixture
def packages() -> Packages:
    return Packages()


@pytest.fixture
def tool(packages: Packages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    kind = f"{platform.system()}-{platform.machine()}"
    return Tool(
        name="helm",
        at_least=(3, 14),
        version=("version",),
        package="@some/helm@1.0.0",
        sha256={kind: hashlib.sha256(PROGRAM).hexdigest()},
        bring=packages.bring,
        unpack=unpack,
        hint="install it",
    )


def on_path(folder: Path, version: str) -> Path:
    program = folder / "bin" / "helm"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho {version}\n")
    program.chmod(0o755)
    return program


def test_it_is_brought_once_and_can_be_run(tool: Tool, packages: Packages) -> None:
    assert find(tool) is None
    place = get(tool)
    assert get(tool) == place == find(tool)
    assert packages.asked == 1
    assert place.stat().st_mode & 0o111
    assert [one.name for one in place.parent.iterdir() if one.is_dir()] == []


@pytest.mark.parametrize("version", ["v3.14.0", "v4.1.4+gabc"])
def test_one_that_is_installed_is_taken(
    tool: Tool, packages: Packages, tmp_path: Path, version: str
) -> None:
    installed = on_path(tmp_path, version)
    assert get(tool) == installed
    assert packages.asked == 0


@pytest.mark.parametrize("version", ["v3.2.9", "unknown"])
def test_one_that_is_too_old_is_not(
    tool: Tool, packages: Packages, tmp_path: Path, version: str
) -> None:
    installed = on_path(tmp_path, version)
    assert get(tool) != installed
    assert packages.asked == 1


def test_a_package_that_is_not_the_expected_one_leaves_nothing(tool: Tool) -> None:
    changed = replace(tool, sha256=dict.fromkeys(tool.sha256, "0" * 64))
    with pytest.raises(ToolError, match=r"has the digest .* expected 0000"):
        get(changed)
    assert find(changed) is None
    assert find(tool) is None


def test_where_there_is_no_package_one_is_told_what_to_do(tool: Tool) -> None:
    with pytest.raises(ToolError, match=r"helm: no package for .*; install it"):
        get(replace(tool, sha256={}))
