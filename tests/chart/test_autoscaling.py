"""The number of model servers follows the requests that wait: whose they are, and who may set it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from tests.chart import upstream
from tests.chart.rendering import containers, named, pod_specs, render, rendered
from tests.chart.scenarios import KEDA
from tests.chart.test_contract import of_kind


@pytest.mark.parametrize("name", ["standalone-all", "gateway-all", "sim-disaggregated"])
def test_scaling_has_a_target_whose_number_nobody_else_sets(name: str) -> None:
    found = rendered(name)
    (scaler,) = of_kind(found, "ScaledObject", "HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    assert "replicas" not in named(found, target["kind"], target["name"])["spec"]
    assert "cpu" not in str(scaler["spec"]).lower()


QUEUE = {"flowControl": {"enabled": True}}
EXTERNAL = {"source": "external", **QUEUE}


@pytest.mark.parametrize(
    ("values", "metric", "owner", "pool"),
    [
        ({"router": QUEUE}, upstream.QUEUE_METRIC, "llm-d-epp", ""),
        ({"mode": "gateway", "router": QUEUE}, upstream.QUEUE_METRIC, "llm-d-epp", "llm-d"),
        ({"router": EXTERNAL}, upstream.QUEUE_METRIC, "llm-d-router-epp", ""),
        ({}, "vllm:num_requests_waiting", "llm-d-decode", None),
        ({"mode": "none"}, "vllm:num_requests_waiting", "llm-d-decode", None),
    ],
)
def test_load_is_read_where_requests_wait_and_of_this_release_only(
    values: Mapping[str, object], metric: str, owner: str, pool: str | None
) -> None:
    found = render({**values, "autoscaling": KEDA})
    trigger = named(found, "ScaledObject", "llm-d-decode")["spec"]["triggers"][0]
    query = trigger["metadata"]["query"]
    for _, template in pod_specs(found):  # what the picker names its pool decides its label
        for word in (word for one in containers(template) for word in one.get("args", [])):
            if word.startswith("--pool-name="):
                assert word.partition("=")[2] == pool
    there = {"namespace": "llm-d", "pod": f"{owner}-5d9c7b6f4-x2x7k"}
    there |= {} if pool is None else {"inference_pool": pool}
    assert counts(query, metric, there)
    assert not counts(query, metric, {**there, "namespace": "other"})
    assert not counts(query, metric, {**there, "pod": f"{owner}-epp-5d9c7b6f4-x2x7k"})
    assert not counts(query, metric, {**there, "pod": "other-epp-5d9c7b6f4-x2x7k"})


def counts(query: str, metric: str, series: Mapping[str, str]) -> bool:
    """Return whether a sum in Prometheus' language counts a series; a label that is not there is empty."""
    found = re.fullmatch(r"sum\(([\w:]+)\{(.*)\}\)", query)
    assert found, query
    if found[1] != metric:
        return False
    for name, operator, value in re.findall(r'(\w+)(=~|=)"([^"]*)"', found[2]):
        pattern = value if operator == "=~" else re.escape(value)
        if not re.fullmatch(pattern, series.get(name, "")):
            return False
    return True
