"""Names that llm-d's programs look for, and what the chart leaves to upstream's own chart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart import upstream
from tests.chart.kubernetes import is_core
from tests.chart.rendering import (
    CHART,
    Object,
    containers,
    named,
    notes,
    pod_specs,
    render,
    rendered,
)
from tests.chart.scenarios import ALL
from tests.chart.test_contract import labels, of_kind, ports, selects

ROUTED = [name for name in ALL if not name.startswith("external") and name != "none"]


def flags(container: Object) -> dict[str, str]:
    """Return a container's flags and their values."""
    found = {}
    for word in container["args"]:
        if word.startswith("--"):
            flag, _, value = word[2:].partition("=")
            found[flag] = value
    return found


def container(name: str, owner: str, which: str) -> Object:
    template = dict(pod_specs(rendered(name)))[owner]
    (found,) = [one for one in containers(template) if one["name"] == which]
    return found


def picker_config(name: str) -> dict[str, Any]:
    text = named(rendered(name), "ConfigMap", "llm-d-epp")["data"]["epp.yaml"]
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_the_chart_says_which_router_it_follows() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == upstream.RELEASE
    for name in ROUTED:
        assert container(name, "llm-d-epp", "epp")["image"].endswith(f":{upstream.RELEASE}")


@pytest.mark.parametrize("name", ROUTED)
def test_the_picker_knows_its_flags(name: str) -> None:
    assert set(flags(container(name, "llm-d-epp", "epp"))) <= upstream.PICKER_FLAGS


@pytest.mark.parametrize("name", ["gpu-pd", "sim-disaggregated", "gateway-all"])
def test_the_sidecar_knows_its_flags(name: str) -> None:
    sidecar = container(name, "llm-d-decode", "routing-proxy")
    assert set(flags(sidecar)) <= upstream.SIDECAR_FLAGS
    assert sidecar["restartPolicy"] == "Always"


@pytest.mark.parametrize("name", ["sim", "sim-disaggregated", "gateway-istio"])
def test_the_simulator_knows_its_flags(name: str) -> None:
    assert set(flags(container(name, "llm-d-decode", "modelserver"))) <= upstream.SIM_FLAGS


@pytest.mark.parametrize("name", ROUTED)
def test_the_picker_knows_its_plug_ins_and_fields(name: str) -> None:
    config = picker_config(name)
    assert config["apiVersion"] == "llm-d.ai/v1alpha1"
    assert set(config) <= upstream.CONFIG_FIELDS
    assert set(config.get("flowControl", {})) <= upstream.FLOW_CONTROL_FIELDS
    declared = [one["type"] for one in config["plugins"]]
    assert len(declared) == len(set(declared))
    assert set(declared) <= upstream.PLUGINS
    for profile in config["schedulingProfiles"]:
        assert {one["pluginRef"] for one in profile["plugins"]} <= set(declared)


@pytest.mark.parametrize("name", ROUTED)
def test_the_picker_finds_the_model_servers(name: str) -> None:
    found = rendered(name)
    said = flags(container(name, "llm-d-epp", "epp"))
    if "pool-name" in said:
        pool = named(found, "InferencePool", said["pool-name"])["spec"]
        selector, (target,) = pool["selector"]["matchLabels"], pool["targetPorts"]
        port = target["number"]
    else:
        selector = dict([said["endpoint-selector"].split("=")])
        port = int(said["endpoint-target-ports"])
    chosen = {owner for owner, one in pod_specs(found) if selects(selector, one)}
    expected = {one["metadata"]["name"] for one in of_kind(found, "Deployment")} - {"llm-d-epp"}
    assert chosen == expected
    for owner in chosen:
        template = dict(pod_specs(found))[owner]
        assert port in ports(template)
        assert labels(template)["llm-d.ai/engine-type"] == "vllm"


@pytest.mark.parametrize("name", ["gpu-pd", "sim-disaggregated", "gateway-all"])
def test_prefill_and_decode_have_pods_profiles_and_ports_of_their_own(name: str) -> None:
    profiles = {one["name"] for one in picker_config(name)["schedulingProfiles"]}
    assert profiles == {"prefill", "decode"}
    for role in profiles:
        assert labels(dict(pod_specs(rendered(name)))[f"llm-d-{role}"])["llm-d.ai/role"] == role
    said = flags(container(name, "llm-d-decode", "routing-proxy"))
    engine = flags(container(name, "llm-d-decode", "modelserver"))
    assert said["model-server-port"] == engine["port"]
    assert said["port"] == flags(container(name, "llm-d-prefill", "modelserver"))["port"]


def test_a_sidecar_follows_its_header_within_the_pool_where_there_is_one() -> None:
    found = rendered("gateway-all")
    said = flags(container("gateway-all", "llm-d-decode", "routing-proxy"))
    assert said["enable-ssrf-protection"] == "true"
    namespace, pool = said["inference-pool"].split("/")
    assert namespace == "llm-d"
    named(found, "InferencePool", pool)
    spec = dict(pod_specs(found))["llm-d-decode"]["spec"]
    assert spec["automountServiceAccountToken"] is True
    role = named(found, "Role", spec["serviceAccountName"])
    assert {name for rule in role["rules"] for name in rule["resources"]} == {
        "inferencepools",
        "pods",
    }


@pytest.mark.parametrize("name", ["gateway-agentgateway", "gateway-istio", "gateway-all"])
def test_gateway_route_pool_and_picker_refer_to_each_other(name: str) -> None:
    found = rendered(name)
    (route,) = of_kind(found, "HTTPRoute")
    (parent,) = route["spec"]["parentRefs"]
    named(found, "Gateway", parent["name"])
    (rule,) = route["spec"]["rules"]
    pool = named(found, "InferencePool", rule["backendRefs"][0]["name"])
    assert rule["timeouts"]["request"] == "0s"
    picker = pool["spec"]["endpointPickerRef"]
    service = named(found, "Service", picker["name"])
    assert picker["port"]["number"] in {one["port"] for one in service["spec"]["ports"]}
    for objective in of_kind(found, "InferenceObjective"):
        assert objective["spec"]["poolRef"]["name"] == pool["metadata"]["name"]
    assert "secure-serving" not in flags(container(name, "llm-d-epp", "epp"))


def test_istio_is_told_of_the_pickers_certificate_and_others_are_not() -> None:
    rule = named(rendered("gateway-istio"), "DestinationRule", "llm-d-epp")
    assert rule["spec"]["host"] == "llm-d-epp.llm-d.svc.cluster.local"
    (gateway,) = of_kind(rendered("gateway-istio"), "Gateway")
    assert labels(gateway)["istio.io/enable-inference-extproc"] == "true"
    assert of_kind(rendered("gateway-agentgateway"), "DestinationRule") == []


def test_a_limit_on_answers_can_be_left_out_for_gateways_that_refuse_it() -> None:
    found = render({"mode": "gateway", "gateway": {"requestTimeout": ""}})
    (route,) = of_kind(found, "HTTPRoute")
    assert "timeouts" not in route["spec"]["rules"][0]


@pytest.mark.parametrize(("name", "mode"), [("external", "standalone")])
def test_external_leaves_the_router_to_upstreams_chart(name: str, mode: str) -> None:
    found = rendered(name)
    kinds = {one["kind"] for one in found}
    assert kinds == {
        "Deployment",
        "Service",
        "Pod",
        "PodMonitor",
        "PodDisruptionBudget",
        "NetworkPolicy",
    }
    assert {owner for owner, _ in pod_specs(found)} == {"llm-d-decode", "llm-d-smoke"}
    label, _, _ = upstream.CHART_LABELS[mode]
    spec = named(found, "Service", "llm-d")["spec"]
    assert spec["selector"] == {label: "llm-d-router-epp"}
    assert spec["ports"][0]["targetPort"] == upstream.CHART_PROXY_PORT


def test_external_with_a_gateway_leaves_pool_and_route_to_upstreams_chart_too() -> None:
    kinds = {one["kind"] for one in rendered("external-gateway")}
    assert kinds == {"Deployment", "Service", "Pod", "Gateway"}


@pytest.mark.parametrize("name", ["sim", "gateway-agentgateway"])
def test_our_router_has_the_labels_of_upstreams(name: str) -> None:
    mode = "gateway" if name.startswith("gateway") else "standalone"
    label, other, value = upstream.CHART_LABELS[mode]
    found = labels(dict(pod_specs(rendered(name)))["llm-d-epp"])
    assert found[label] == "llm-d-epp"
    assert found[other] == value


def test_the_documented_command_brings_what_external_selects() -> None:
    text = (CHART.parent / "UPSTREAM.md").read_text()
    (command,) = re.findall(r"helm upgrade --install (\S+) oci://(\S+) --version (\S+)", text)
    assert command == (
        "llm-d-router",
        "ghcr.io/llm-d/charts/llm-d-router-standalone",
        upstream.RELEASE,
    )
    (guide,) = re.findall(r"matchLabels\.llm-d\\\.ai/guide=(\S+)'", text)
    template = dict(pod_specs(rendered("external")))["llm-d-decode"]
    assert labels(template)["llm-d.ai/guide"] == guide


@pytest.mark.parametrize("mode", ["standalone", "gateway"])
def test_after_an_install_one_reads_the_command_for_upstreams_router(
    mode: str, tmp_path: Path
) -> None:
    said = notes(tmp_path, {"mode": mode, "router": {"source": "external"}})
    assert (
        f"helm upgrade --install llm-d-router oci://ghcr.io/llm-d/charts/llm-d-router-{mode}"
        in said
    )
    assert f"--version {upstream.RELEASE} " in said
    given = dict(
        pair.split("=")
        for group in re.findall(r"--set '?([^\s']+)", said)
        for pair in group.split(",")
    )
    assert set(given) <= upstream.CHART_VALUES[mode]
    assert given["router.modelServers.matchLabels.llm-d\\.ai/guide"] == "llm-d"


CRD = r"[a-z]+\.[a-z0-9-]+(?:\.[a-z0-9-]+)+"


@pytest.mark.parametrize("profile", ["gateway-agentgateway", "gateway-istio"])
def test_crds_that_a_cluster_lacks_are_named_and_explained(profile: str, tmp_path: Path) -> None:
    found = [one for one in rendered(profile) if not is_core(one)]
    kinds = {f"{one['apiVersion']}/{one['kind']}" for one in found}
    said = notes(tmp_path / "bare", profile=profile).partition("lacks CRDs")[2]
    missing = re.findall(CRD, said.partition("README.md:")[2])
    assert sorted(missing) == sorted(map(_crd, kinds))
    readme = (CHART / "README.md").read_text()
    assert [name for name in missing if f"| `{name}` |" not in readme] == []
    assert "lacks CRDs" not in notes(tmp_path / "full", profile=profile, knows=kinds)


def _crd(api: str) -> str:
    """Return the name of the CRD of `group/version/Kind`."""
    group, _, kind = api.split("/")
    return f"{kind.lower()}s.{group}"


def test_made_up_answers_are_announced_and_real_ones_are_not(tmp_path: Path) -> None:
    assert "SIMULATOR" in notes(tmp_path / "sim")
    said = notes(tmp_path / "vllm", {"engine": {"type": "vllm"}, "service": {"port": 9000}})
    assert "SIMULATOR" not in said
    assert "http://llm-d.llm-d.svc.cluster.local:9000" in said
    assert "port-forward svc/llm-d 18000:9000" in said
