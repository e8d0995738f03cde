"""The chart as helm renders it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from scripts.chart_tools import ENVOY, HELM, Tool, find
from tests.chart.scenarios import MORE, PROFILES
from tests.integration.stack import ROOT, missing

CHART = ROOT / "worker_cluster" / "chart"
NAMESPACE = "llm-d"
NEWEST = "1.35"

Object = dict[str, Any]
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RefusedError(Exception):
    """helm refused the values; the message is what it printed."""


def program(tool: Tool) -> str:
    """Return a tool's path; skip the test without it (in CI: fail)."""
    found = find(tool)
    return str(found) if found else missing(f"{tool.name}: python -m scripts.chart_tools")


def helm(*words: str, says: str = "") -> str:
    """Run helm and return what it prints.

    Raises:
        RefusedError: it ended with an error.
    """
    done = subprocess.run(
        [program(HELM), *words], input=says, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise RefusedError(done.stdout + done.stderr)
    return done.stdout


def manifest(
    values: Mapping[str, object] | None = None,
    *,
    profile: str = "",
    kubernetes: str = NEWEST,
    release: str = "llm-d",
) -> str:
    """Return the chart rendered with a profile's values and some more, as text.

    Raises:
        RefusedError: the values are refused.
    """
    words = ["template", release, str(CHART), "--namespace", NAMESPACE]
    words += ["--kube-version", f"{kubernetes}.0"]
    if profile:
        words += ["--values", str(CHART / "values" / f"{profile}.yaml")]
    return helm(*words, "--values", "-", says=json.dumps(values or {}))


def notes(
    folder: Path,
    values: Mapping[str, object] | None = None,
    *,
    profile: str = "",
    knows: Iterable[str] = (),
) -> str:
    """Return what one reads after an install, which helm 3 shows nobody without a cluster.

    Args:
        folder: for a copy of the chart that has the notes as an object.
        values: of the chart.
        profile: whose values come first.
        knows: kinds that the cluster knows besides Kubernetes' own, as `group/version/Kind`.
    """
    copy = folder / "chart"
    shutil.copytree(CHART, copy)
    (copy / "templates" / "NOTES.txt").rename(copy / "notes.txt")
    (copy / "templates" / "notes.yaml").write_text(
        'notes: {{ tpl (.Files.Get "notes.txt") . | quote }}\n'
    )
    words = ["template", "llm-d", str(copy), "--namespace", NAMESPACE]
    words += [word for one in knows for word in ("--api-versions", one)]
    if profile:
        words += ["--values", str(copy / "values" / f"{profile}.yaml")]
    words += ["--values", "-"]
    text = helm(*words, "--show-only", "templates/notes.yaml", says=json.dumps(values or {}))
    said: str = yaml.safe_load(text)["notes"]
    return said


def objects(text: str) -> list[Object]:
    """Return a manifest's objects."""
    return [item for item in yaml.load_all(text, _LOADER) if item]


def render(values: Mapping[str, object] | None = None, **options: str) -> list[Object]:
    """Return the chart's objects; arguments as `manifest` has them."""
    return objects(manifest(values, **options))


@cache
def rendered(name: str, kubernetes: str = NEWEST) -> tuple[Object, ...]:
    """Return the objects of a profile or of one of `scenarios.MORE`, rendered once; do not change them."""
    if name in PROFILES:
        return tuple(render(profile=name, kubernetes=kubernetes))
    return tuple(render(MORE[name], kubernetes=kubernetes))


def named(found: Iterable[Object], kind: str, name: str) -> Object:
    """Return the object of this kind and name."""
    (match,) = [one for one in found if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return match


def pod_specs(found: Iterable[Object]) -> list[tuple[str, Object]]:
    """Return name and pod template of each workload, bare pods included."""
    specs = []
    for one in found:
        if one["kind"] in {"Deployment", "StatefulSet", "Job"}:
            specs.append((one["metadata"]["name"], one["spec"]["template"]))
        elif one["kind"] == "Pod":
            specs.append((one["metadata"]["name"], one))
    return specs


def containers(template: Object) -> list[Object]:
    """Return all containers of a pod template, sidecars and others that come first included."""
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def envoy_program() -> Path:
    """Return Envoy's path; skip the test without it (in CI: fail)."""
    return Path(program(ENVOY))
