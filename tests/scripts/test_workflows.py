"""The workflows hold what a linter does not ask for: pins, rights, and files that are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = {path.name: path for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
MAKEFILE = (ROOT / "Makefile").read_text()


def jobs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(WORKFLOWS[name].read_text())["jobs"]
    return found


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_every_action_is_pinned_by_its_commit_and_named_by_its_release(name: str) -> None:
    for used in re.findall(r"uses: (.+)", WORKFLOWS[name].read_text()):
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used) or (
            used.startswith("./.github/workflows/")
        ), used


def test_one_commit_for_each_action() -> None:
    pins: dict[str, set[str]] = {}
    for path in WORKFLOWS.values():
        for action, pin in re.findall(r"uses: ([\w./-]+)@(\S+ # \S+)", path.read_text()):
            pins.setdefault(action, set()).add(pin)
    assert {action: found for action, found in pins.items() if len(found) > 1} == {}


@pytest.mark.parametrize("name", sorted(set(WORKFLOWS) - {"release.yml"}))
def test_only_a_release_may_write(name: str) -> None:
    document = yaml.safe_load(WORKFLOWS[name].read_text())
    assert document["permissions"] == {"contents": "read"}
    assert [job for job in document["jobs"].values() if "permissions" in job] == []


def test_a_release_gives_each_job_its_own_rights() -> None:
    assert yaml.safe_load(WORKFLOWS["release.yml"].read_text())["permissions"] == {}
    writing = {
        name: sorted(right for right, level in job["permissions"].items() if level == "write")
        for name, job in jobs("release.yml").items()
    }
    assert writing == {
        "decide": [],
        "checks": [],
        "archives": [],
        "images": ["packages"],
        "tags": ["attestations", "id-token", "packages"],
        "chart": ["packages"],
        "publish": ["attestations", "contents", "id-token"],
    }


def test_nothing_is_pushed_or_published_before_the_checks() -> None:
    release = jobs("release.yml")

    def before(name: str) -> set[str]:
        needs = release[name].get("needs", [])
        direct = {needs} if isinstance(needs, str) else set(needs)
        return direct.union(*(before(need) for need in direct)) if direct else set()

    for name, job in release.items():
        if "write" in job["permissions"].values():
            assert {"decide", "checks"} <= before(name), name


def test_integration_runs_by_hand_only() -> None:
    assert jobs("ci.yml")["integration"]["if"] == "github.event_name == 'workflow_dispatch'"


@pytest.mark.parametrize("part", ["lint", "test"])
def test_both_systems_and_every_python_are_checked(part: str) -> None:
    matrix = jobs("ci.yml")[part]["strategy"]["matrix"]
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "macos"}
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]


def run_of(job: str, name: str) -> str:
    """Return what a step of a release runs."""
    (step,) = [one for one in jobs("release.yml")[job]["steps"] if name in one.get("name", "")]
    return str(step["run"])


def test_a_releases_images_are_built_on_one_digest_of_their_base(tmp_path: Path) -> None:
    digest = f"sha256:{'a1' * 32}"
    docker, jq = tmp_path / "docker", tmp_path / "jq"  # what GitHub's machines have
    docker.write_text('#!/bin/sh\necho "{\\"digest\\": \\"$DIGEST\\"}"\n')
    jq.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.load(sys.stdin)['digest'])\n")
    for tool in (docker, jq):
        tool.chmod(0o755)
    output = tmp_path / "output"

    def found(digest: str) -> subprocess.CompletedProcess[str]:
        path = f"{tmp_path}:{os.defpath}"
        return subprocess.run(
            ["bash", "-e", "-c", run_of("decide", "the images' base")],
            cwd=ROOT,
            env={"PATH": path, "GITHUB_OUTPUT": str(output), "DIGEST": digest},
            capture_output=True,
            text=True,
            check=False,
        )

    assert found(digest).returncode == 0
    assert output.read_text() == f"base=python:3.12-slim@{digest}\n"
    assert found("null").returncode == 1
    build = run_of("images", "build and push")
    assert '--build-context "${BASE%@*}=docker-image://$BASE"' in build
    bases = {
        line
        for name in ("router", "local_agent")
        for line in (ROOT / name / "Dockerfile").read_text().splitlines()
        if line.startswith("FROM ")
    }
    assert bases == {"FROM python:3.12-slim AS build", "FROM python:3.12-slim"}


def test_a_release_has_the_sbom_among_its_files() -> None:
    steps = [step.get("run", "") for step in jobs("release.yml")["archives"]["steps"]]
    dist, sbom = ([target in run for run in steps].index(True) for target in ("dist", "make sbom"))
    assert dist < sbom  # `make dist` empties the folder
    upload = jobs("release.yml")["archives"]["steps"][-1]["with"]
    assert (upload["name"], upload["path"]) == ("archives", "dist/")


@pytest.mark.parametrize("name", sorted(WORKFLOWS))
def test_what_is_run_is_there(name: str) -> None:
    text = WORKFLOWS[name].read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", text)) <= targets
    for module in re.findall(r"python3? -m (scripts[\w.]+|tests[\w.]+)", text):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
