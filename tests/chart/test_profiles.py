"""The profiles: they lint, they render to what was read last, and Kubernetes would take them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.chart.golden import FOLDER
from tests.chart.rendering import (
    CHART,
    NEWEST,
    Object,
    containers,
    helm,
    manifest,
    objects,
    pod_specs,
    rendered,
)
from tests.chart.scenarios import ALL, PROFILES

VERSIONS = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35")
SCHEMAS = Path(__file__).parent / "schemas"
CORE = {
    "v1",
    "apps/v1",
    "autoscaling/v2",
    "networking.k8s.io/v1",
    "policy/v1",
    "rbac.authorization.k8s.io/v1",
}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_nothing_to_complain_about(profile: str) -> None:
    said = helm("lint", "--strict", str(CHART), "-f", str(CHART / "values" / f"{profile}.yaml"))
    assert "[WARNING]" not in said
    assert "[ERROR]" not in said


def test_the_profiles_are_those_that_are_tested() -> None:
    assert {path.stem for path in (CHART / "values").iterdir()} == set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_rendered_as_it_was_read_last(profile: str) -> None:
    golden = objects((FOLDER / f"{profile}.yaml").read_text())
    now = objects(manifest(profile=profile))
    pairs = [(_text(golden), _text(now))]
    diff = [line for old, new in pairs for line in difflib.unified_diff(old, new, "golden", "now")]
    assert not diff, "python -m tests.chart.golden, if it is meant:\n" + "\n".join(diff)


def _text(found: list[Object]) -> list[str]:
    return [line for one in found for line in yaml.safe_dump(one).splitlines()]


@pytest.mark.parametrize("kubernetes", VERSIONS)
def test_kubernetes_knows_every_field(kubernetes: str) -> None:
    checked = set()
    for one in _distinct("1.29" if kubernetes == "1.29" else NEWEST):
        if one["apiVersion"] in CORE:
            _validator(one["kind"], one["apiVersion"], kubernetes).validate(one)
            checked.add(one["kind"])
    assert checked >= {"Deployment", "Service", "NetworkPolicy", "HorizontalPodAutoscaler"}


def test_only_kubernetes_1_29_gets_something_else() -> None:
    newest = rendered("standalone-all")
    assert rendered("standalone-all", "1.30") == newest
    assert _pre_stops(newest) - _pre_stops(rendered("standalone-all", "1.29")) == {"sleep"}


def _pre_stops(found: Iterable[Object]) -> set[str]:
    """Return what containers do before they end."""
    return {
        action
        for _, template in pod_specs(found)
        for one in containers(template)
        for action in one.get("lifecycle", {}).get("preStop", {})
    }


@pytest.mark.parametrize("kubernetes", [VERSIONS[0], VERSIONS[-1]])
def test_kubernetes_would_refuse_a_field_that_it_does_not_know(kubernetes: str) -> None:
    service = next(one for one in rendered("sim") if one["kind"] == "Service")
    broken = {**service, "spec": {**service["spec"], "prots": []}}
    with pytest.raises(jsonschema.ValidationError, match="prots"):
        _validator("Service", "v1", kubernetes).validate(broken)


def test_each_further_kind_has_a_schema_and_fits_it() -> None:
    kinds = set()
    for name in ALL:
        for one in rendered(name):
            if one["apiVersion"] not in CORE:
                kinds.add(one["kind"])
                _own_validator(one["kind"]).validate(one)
    assert kinds == {path.stem for path in SCHEMAS.iterdir()}


def _distinct(kubernetes: str) -> Iterator[Object]:
    """Yield what all scenarios together have, each object once."""
    seen = set()
    for name in ALL:
        for one in rendered(name, kubernetes):
            text = json.dumps(one, sort_keys=True)
            if text not in seen:
                seen.add(text)
                yield one


@cache
def _validator(kind: str, api_version: str, kubernetes: str) -> Any:
    """Return the check of one kind; `kubernetes_validate` itself reads a megabyte for each object."""
    folder = f"kubernetes-json-schema/v{kubernetes}.0-local-strict"
    group, _, version = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], version)))
    schema = schema_contents(f"{folder}/{name}.json", kubernetes)
    registry = Resource.from_contents(schema) @ _definitions(folder, kubernetes)
    return jsonschema.Draft202012Validator(schema, registry=registry)


@cache
def _definitions(folder: str, kubernetes: str) -> Any:
    found: Registry[Any] = Registry()
    return (
        Resource.from_contents(schema_contents(f"{folder}/_definitions.json", kubernetes)) @ found
    )


@cache
def _own_validator(kind: str) -> Any:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{kind}.json").read_text()))
