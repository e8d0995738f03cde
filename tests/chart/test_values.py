"""What may be set, and what one is told when it may not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chart.kubernetes import check
from tests.chart.rendering import (
    CHART,
    NEWEST,
    RefusedError,
    containers,
    manifest,
    named,
    objects,
    pod_specs,
    render,
)
from tests.chart.schema_values import values_of

SCHEMA: Mapping[str, Any] = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS: Mapping[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
GPU: Mapping[str, Any] = {"engine": {"type": "vllm"}}
CHECKED = {"enabled": True, "gpuMemoryGiB": 24, "weightsGiB": 15.3, "kvKiBPerToken": 144}
VARIED = sorted(set(DEFAULTS) - {"mode", "extraObjects"})


def nested(path: str, value: object) -> dict[str, Any]:
    """Return values with one leaf: `model.name`."""
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def refusal(values: Mapping[str, object]) -> str:
    """Return what one is told."""
    with pytest.raises(RefusedError) as caught:
        manifest(values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("modle", {}, "additional properties 'modle' not allowed"),
        ("router.epp.imag", "x:1", "at '/router/epp': additional properties 'imag' not allowed"),
        ("service.typ", "NodePort", "at '/service': additional properties 'typ' not allowed"),
        ("mode", "serverless", "at '/mode': value must be one of 'standalone', 'gateway', 'none'"),
        ("engine.type", "llama", "at '/engine/type': value must be one of 'sim', 'vllm'"),
        ("engine.image.sim", "ghcr.io/x/y", "at '/engine/image/sim': 'ghcr.io/x/y' does not match"),
        ("engine.image.sim", "x/y:latest", "engine.image.sim=x/y:latest: name a version"),
        ("router.epp.image", "x/y:latest", "router.epp.image=x/y:latest: name a version"),
        ("test.image", "curl:latest", "test.image=curl:latest: name a version"),
        ("model.maxModelLen", 255, "at '/model/maxModelLen': minimum: got 255, want 256"),
        ("model.maxModelLen", "all", "at '/model/maxModelLen': value must be 'auto'"),
        ("model.gpuMemoryUtilization", 1.5, "maximum: got 1.5, want 0.98"),
        ("model.gpuMemoryUtilization", "0.99", "'0.99' does not match"),
        ("modelServer.port", 80, "at '/modelServer/port': minimum: got 80"),
        ("modelServer.replicas", -1, "at '/modelServer/replicas': minimum: got -1, want 0"),
        ("modelServer.resources.limits.memory", "lots", "'lots' does not match"),
        ("router.proxy.streamIdleTimeout", "5m", "'5m' does not match"),
        ("gateway.failureMode", "FailClosed", "value must be one of 'FailOpen', 'FailClose'"),
        ("service.nodePort", 80, "at '/service/nodePort': minimum: got 80, want 30,000"),
        ("service.nodePort", 30800, "service.nodePort=30800 needs service.type=NodePort"),
        ("secrets.hfToken.create", True, "needs secrets.hfToken.value; better make the Secret"),
        ("secrets.hfToken.value", "hf_x", "with secrets.hfToken.create=true only"),
        ("secrets.apiKey.existingSecret", "key", "secrets.apiKey needs engine.type=vllm"),
        ("model.maxModelLen", "auto", "model.maxModelLen=auto needs engine.type=vllm"),
        ("router.objectives", [{"name": "a", "priority": 1}], "set mode=gateway"),
        ("router.external.release", "llm-d", None),
        ("autoscaling.enabled", True, "autoscaling.kind=keda needs autoscaling.prometheusAddress"),
        (
            "router.epp.replicas",
            2,
            "router.epp.replicas=2: of several pickers only the one that leads",
        ),
        ("disaggregation.minPromptTokens", 0, "minPromptTokens': minimum: got 0, want 1"),
        ("modelServer.drainSeconds", 200, "has to be below modelServer.terminationGracePeriod"),
    ],
)
def test_one_is_told_what_does_not_fit(path: str, value: object, message: str | None) -> None:
    if message is None:  # has a meaning with router.source=external only
        manifest(nested(path, value))
    else:
        assert message in refusal(nested(path, value))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "none", "disaggregation": {"enabled": True}}, "needs a router that tells pods"),
        ({"mode": "none", "router": {"source": "external"}}, "has no meaning with mode=none"),
        ({"mode": "none", "router": {"flowControl": {"enabled": True}}}, "needs the picker"),
        (
            {"router": {"source": "external", "external": {"release": "llm-d"}}},
            "is this release's own name",
        ),
        (
            {"router": {"source": "external", "epp": {"pluginsConfig": "a: 1"}}},
            "in upstream's chart",
        ),
        (
            {"router": {"flowControl": {"enabled": True, "defaultRequestTTL": "300s"}}},
            "defaultRequestTTL=300s has to be below router.proxy.streamIdleTimeout=300s",
        ),
        (
            {"engine": {"type": "vllm-cpu"}, "disaggregation": {"enabled": True}},
            "CPUs have no connector",
        ),
        (
            {"disaggregation": {"enabled": True}, "modelServer": {"port": 8200}},
            "modelServer.port=8200 is the engine's own port",
        ),
        (
            {**GPU, "disaggregation": {"enabled": True}, "modelServer": {"port": 5600}},
            "modelServer.port=5600 is the port by which pods offer each other their KV cache",
        ),
        (
            {**GPU, "modelServer": {"tensorParallelSize": 4, "gpu": {"count": 2}}},
            "tensorParallelSize=4 needs as many GPUs: modelServer.gpu.count=2",
        ),
        (
            {"autoscaling": {"enabled": True, "kind": "hpa", "minReplicas": 5}},
            "autoscaling.minReplicas=5 is above autoscaling.maxReplicas=4",
        ),
        (
            {"secrets": {"hfToken": {"create": True, "value": "x", "existingSecret": "y"}}},
            "either create or existingSecret",
        ),
        ({**GPU, "capacityCheck": {"enabled": True}}, "needs capacityCheck.gpuMemoryGiB"),
        (
            {**GPU, "capacityCheck": CHECKED, "model": {"maxModelLen": 131072}},
            "about 31311 tokens. Set model.maxModelLen=31311 or less, or auto",
        ),
        (
            {**GPU, "capacityCheck": {**CHECKED, "weightsGiB": "65.5"}},
            "65.5 GiB of weights do not fit into 19.6 GiB of GPU memory",
        ),
    ],
)
def test_one_is_told_what_does_not_go_together(values: Mapping[str, object], message: str) -> None:
    assert message in refusal(values)


@pytest.mark.parametrize(
    ("model", "gpus"),
    [({"maxModelLen": 31311}, 1), ({"maxModelLen": "auto"}, 1), ({"maxModelLen": 131072}, 2)],
)
def test_a_context_that_fits_is_taken(model: Mapping[str, object], gpus: int) -> None:
    server = {"tensorParallelSize": gpus, "gpu": {"count": gpus}}
    found = render({**GPU, "capacityCheck": CHECKED, "model": model, "modelServer": server})
    (engine,) = containers(dict(pod_specs(found))["llm-d-decode"])
    assert f"--max-model-len={model['maxModelLen']}" in engine["args"]


def test_numbers_stay_numbers_also_as_set_gives_them() -> None:
    values = {**GPU, "model": {"maxModelLen": 10485760, "gpuMemoryUtilization": "0.85"}}
    (engine,) = containers(dict(pod_specs(render(values)))["llm-d-decode"])
    assert "--max-model-len=10485760" in engine["args"]
    assert "--gpu-memory-utilization=0.85" in engine["args"]


def test_names_that_yaml_would_take_for_something_else_stay_names() -> None:
    values = {
        **GPU,
        "mode": "gateway",
        "nameOverride": "true",
        "service": {"name": "null"},
        "gateway": {"name": "1e3", "className": "0"},
        "router": {"objectives": [{"name": "12", "priority": 1}]},
        "secrets": {
            "hfToken": {"existingSecret": "1", "key": "2"},
            "apiKey": {"existingSecret": "3"},
        },
        "modelCache": {"enabled": True, "existingClaim": "4"},
        "modelServer": {"gpu": {"runtimeClassName": "5"}},
        "networkPolicy": {"enabled": True},
    }
    found = render(values)
    for one in found:
        check(one, NEWEST)
    named(found, "Service", "null")
    named(found, "Gateway", "1e3")
    named(found, "HTTPRoute", "true")


def test_gpus_are_asked_for_by_vllm_for_gpus_only() -> None:
    for kind, count in (("vllm", "1"), ("vllm-cpu", None), ("sim", None)):
        found = render({"engine": {"type": kind}})
        (engine,) = containers(dict(pod_specs(found))["llm-d-decode"])
        for part in ("requests", "limits"):
            assert engine["resources"][part].get("nvidia.com/gpu") == count
    other = {**GPU, "modelServer": {"gpu": {"resource": "amd.com/gpu", "count": 2}}}
    (engine,) = containers(dict(pod_specs(render(other)))["llm-d-decode"])
    assert engine["resources"]["limits"]["amd.com/gpu"] == "2"


def test_requests_and_limits_are_those_that_were_set() -> None:
    asked = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "3Gi"}}
    found = render({**GPU, "modelServer": {"resources": asked}})
    (engine,) = containers(dict(pod_specs(found))["llm-d-decode"])
    gpu = {"nvidia.com/gpu": "1"}
    assert engine["resources"] == {part: {**amounts, **gpu} for part, amounts in asked.items()}


def test_own_plug_ins_replace_the_charts() -> None:
    own = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: []\n"
    config = named(render({"router": {"epp": {"pluginsConfig": own}}}), "ConfigMap", "llm-d-epp")
    assert yaml.safe_load(config["data"]["epp.yaml"]) == yaml.safe_load(own)


def test_a_picker_starts_anew_when_what_it_reads_changes() -> None:
    sums = set()
    for weight in ("60s", "90s", "60s"):
        values = {"router": {"flowControl": {"enabled": True, "defaultRequestTTL": weight}}}
        template = dict(pod_specs(render(values)))["llm-d-epp"]
        sums.add(template["metadata"]["annotations"]["checksum/config"])
    assert len(sums) == 2


def test_weights_outlive_an_uninstall() -> None:
    found = render({**GPU, "modelCache": {"enabled": True}})
    claim = named(found, "PersistentVolumeClaim", "llm-d-model-cache")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    given = render({**GPU, "modelCache": {"enabled": True, "existingClaim": "mine"}})
    assert not [one for one in given if one["kind"] == "PersistentVolumeClaim"]


def test_a_release_of_another_name_keeps_the_service() -> None:
    found = objects(manifest(release="other"))
    named(found, "Service", "llm-d")
    template = dict(pod_specs(found))["other-epp"]
    picker, _ = containers(template)
    assert "--endpoint-selector=llm-d.ai/guide=other" in picker["args"]


def test_releases_may_have_names_that_services_may_not() -> None:
    named(objects(manifest(release="my.release")), "Service", "my-release-epp")
    with pytest.raises(RefusedError, match="set nameOverride, since the release is called 1st"):
        manifest(release="1st")
    named(objects(manifest({"nameOverride": "first"}, release="1st")), "Service", "first-epp")


def test_every_default_is_in_the_schema_and_the_schema_has_no_other() -> None:
    assert set(_leaves(DEFAULTS)) | {"global"} == set(_schema_leaves(SCHEMA))


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        inner = f"{path}.{name}".lstrip(".")
        if isinstance(value, dict) and value and "resources" not in inner.lower():
            yield from _leaves(value, inner)
        else:
            yield inner


def _schema_leaves(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, one in schema["properties"].items():
        inner = f"{path}.{name}".lstrip(".")
        if one.get("properties"):
            assert one["additionalProperties"] is False, inner
            yield from _schema_leaves(one, inner)
        else:
            yield inner


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_the_schema_allows_is_rendered_or_refused_by_name(data: st.DataObject) -> None:
    values = {"mode": data.draw(values_of(SCHEMA["properties"]["mode"], SCHEMA))}
    for name in data.draw(st.sets(st.sampled_from(VARIED), max_size=6)):
        values[name] = data.draw(values_of(SCHEMA["properties"][name], SCHEMA))
    try:
        found = render(values)
    except RefusedError as error:
        assert "execution error at (llm-d/templates/validate.yaml" in str(error), error
        assert not any(word in str(error) for word in ("<nil>", "%!", "interface"))
        return
    for one in found:
        check(one, NEWEST)
    for _, template in pod_specs(found):
        for one in containers(template):
            for word in one.get("args", []):
                flag, _, number = word.partition("=")
                if flag in {"--max-model-len", "--max-num-seqs", "--port"}:
                    assert re.fullmatch(r"auto|[0-9]+", number), word
