"""The profiles: they lint, they render to what was read last, and Kubernetes would take them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator

import jsonschema
import pytest
import yaml

from tests.chart.golden import FOLDER
from tests.chart.kubernetes import SCHEMAS, VERSIONS, check, is_core
from tests.chart.rendering import (
    CHART,
    NEWEST,
    Object,
    containers,
    helm,
    objects,
    pod_specs,
    rendered,
)
from tests.chart.scenarios import ALL, PROFILES


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_nothing_to_complain_about(profile: str) -> None:
    said = helm("lint", "--strict", str(CHART), "-f", str(CHART / "values" / f"{profile}.yaml"))
    assert "[WARNING]" not in said
    assert "[ERROR]" not in said


def test_the_profiles_are_those_that_are_tested() -> None:
    assert {path.stem for path in (CHART / "values").iterdir()} == set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_rendered_as_it_was_read_last(profile: str) -> None:
    golden = _lines(objects((FOLDER / f"{profile}.yaml").read_text()))
    diff = [*difflib.unified_diff(golden, _lines(rendered(profile)), "golden", "now")]
    assert not diff, "python -m tests.chart.golden, if it is meant:\n" + "\n".join(diff)


def _lines(found: Iterable[Object]) -> list[str]:
    return [line for one in found for line in yaml.safe_dump(one).splitlines()]


@pytest.mark.parametrize("kubernetes", VERSIONS)
def test_kubernetes_knows_every_field(kubernetes: str) -> None:
    checked = set()
    for one in filter(is_core, _distinct("1.29" if kubernetes == "1.29" else NEWEST)):
        check(one, kubernetes)
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
        check(broken, kubernetes)


def test_each_further_kind_has_a_schema_and_fits_it() -> None:
    kinds = set()
    for name in ALL:
        for one in rendered(name):
            if not is_core(one):
                check(one, NEWEST)
                kinds.add(one["kind"])
    assert kinds == {path.stem for path in SCHEMAS.iterdir()}


def _distinct(kubernetes: str) -> Iterator[Object]:
    """Yield what all scenarios together have, each object once; for 1.29, those that have all kinds."""
    seen = set()
    for name in ALL if kubernetes == NEWEST else ("sim", "gpu-pd", "standalone-all", "gateway-all"):
        for one in rendered(name, kubernetes):
            text = json.dumps(one, sort_keys=True)
            if text not in seen:
                seen.add(text)
                yield one
