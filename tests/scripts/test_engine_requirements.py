"""What the environments of engines are held to: the versions of the recipes, and of all that they bring along."""

from __future__ import annotations

import re

import pytest

from scripts.engine_requirements import lockable, requirements
from tests.local_agent.harness import ROOT

FOLDER = ROOT / "local_agent" / "constraints"
PINNED = re.compile(r"(?P<name>[a-z0-9._-]+)==(?P<version>[a-z0-9.+]+)(?: ; .+)?", re.IGNORECASE)


def locked(name: str) -> list[str]:
    lines = (FOLDER / f"{name}.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_every_engine_of_an_index_has_its_versions() -> None:
    assert sorted(lockable()) == sorted(path.stem for path in FOLDER.glob("*.txt"))
    assert "vllm_metal" not in lockable(), "its packages lie on a page of a release"


@pytest.mark.parametrize("name", lockable())
def test_the_versions_are_exact_and_those_of_the_recipe(name: str) -> None:
    held = [found for line in locked(name) if (found := PINNED.fullmatch(line)) is not None]
    assert len(held) == len(locked(name)) > len(requirements(name))
    pins = {(one["name"].lower(), one["version"]) for one in held}
    for wanted in requirements(name):
        named, _, version = wanted.partition(" ;")[0].partition("==")
        assert (named.partition("[")[0].lower(), version) in pins, "make lock"
    # no index's address, and no file of the machine that wrote it
    assert "//" not in (FOLDER / f"{name}.txt").read_text()


def test_what_differs_between_hosts_has_its_platform() -> None:
    assert {
        "mlx==0.32.4 ; sys_platform == 'darwin'",
        "mlx[cpu]==0.32.4 ; sys_platform == 'linux'",
        "mlx-lm==0.32.2",
    } <= set(requirements("mlx_lm"))
