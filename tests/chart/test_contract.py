"""What has to fit together within a release, so that nothing is found out by a pod that does not start."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest

from tests.chart.rendering import Object, containers, named, pod_specs, rendered
from tests.chart.scenarios import ALL, PROFILES
from tests.integration.stack import ROOT

GIVEN = {"llm-d-hf-token", "llm-d-key", "registry"}
"""Secrets that the scenarios say are there."""
NAMESPACED = {
    *("ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy"),
    *("PersistentVolumeClaim", "Pod", "PodDisruptionBudget", "Role", "RoleBinding", "Secret"),
    *("Service", "ServiceAccount"),
    *("PodMonitor", "ScaledObject", "ServiceMonitor"),
    *("DestinationRule", "Gateway", "HTTPRoute", "InferenceObjective", "InferencePool"),
}


def labels(template: Object) -> dict[str, str]:
    found: dict[str, str] = template["metadata"].get("labels", {})
    return found


def selects(selector: Mapping[str, str], template: Object) -> bool:
    return bool(selector) and selector.items() <= labels(template).items()


def of_kind(found: Iterable[Object], *kinds: str) -> list[Object]:
    return [one for one in found if one["kind"] in kinds]


def ports(template: Object) -> dict[object, str]:
    """Return the container of each port, by the port's name and by its number."""
    return {
        key: one["name"]
        for one in containers(template)
        for port in one.get("ports", [])
        for key in (port.get("name"), port["containerPort"])
    }


def values_of(node: object, key: str) -> Iterator[Any]:
    """Yield every value below a key, wherever it is."""
    if isinstance(node, dict):
        for name, inner in node.items():
            if name == key:
                yield inner
            yield from values_of(inner, key)
    elif isinstance(node, list):
        for inner in node:
            yield from values_of(inner, key)


def is_ours(service: Object) -> bool:
    """Return whether a Service leads to pods of this release, not to a Gateway's or upstream's."""
    selector = service["spec"]["selector"]
    return "gateway.networking.k8s.io/gateway-name" not in selector


@pytest.mark.parametrize("name", [one for one in ALL if not one.startswith("external")])
def test_every_service_leads_to_a_port_of_pods(name: str) -> None:
    found = rendered(name)
    for service in filter(is_ours, of_kind(found, "Service")):
        chosen = [one for _, one in pod_specs(found) if selects(service["spec"]["selector"], one)]
        assert chosen, service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            for template in chosen:
                assert port["targetPort"] in ports(template), port


@pytest.mark.parametrize("name", ALL)
def test_clients_always_find_llm_d_on_port_8000(name: str) -> None:
    service = named(rendered(name), "Service", "llm-d")
    (port,) = service["spec"]["ports"]
    assert (port["name"], port["port"]) == ("http", 8000)


def test_that_service_leads_to_the_proxy_or_to_pods_that_decode() -> None:
    for name, container in (("defaults", "proxy"), ("none", "modelserver")):
        found = rendered(name)
        spec = named(found, "Service", "llm-d")["spec"]
        (chosen,) = [one for _, one in pod_specs(found) if selects(spec["selector"], one)]
        assert ports(chosen)[spec["ports"][0]["targetPort"]] == container
    found = rendered("gateway-agentgateway")
    spec = named(found, "Service", "llm-d")["spec"]
    gateway = named(found, "Gateway", spec["selector"]["gateway.networking.k8s.io/gateway-name"])
    assert spec["ports"][0]["targetPort"] == gateway["spec"]["listeners"][0]["port"]


@pytest.mark.parametrize("name", ALL)
def test_a_deployment_selects_its_own_pods_only(name: str) -> None:
    found = rendered(name)
    for deployment in of_kind(found, "Deployment"):
        selector = deployment["spec"]["selector"]["matchLabels"]
        chosen = [owner for owner, one in pod_specs(found) if selects(selector, one)]
        assert chosen == [deployment["metadata"]["name"]]


@pytest.mark.parametrize("name", ALL)
def test_probes_ask_a_port_of_their_own_container(name: str) -> None:
    for _, template in pod_specs(rendered(name)):
        for one in containers(template):
            own = ports({"spec": {"containers": [one]}})
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                for asked in ("httpGet", "grpc"):
                    port = one.get(probe, {}).get(asked, {}).get("port")
                    assert port is None or port in own, (one["name"], probe)


@pytest.mark.parametrize("name", ALL)
def test_what_pods_refer_to_is_part_of_the_release(name: str) -> None:
    found = rendered(name)
    there = {(one["kind"], one["metadata"]["name"]) for one in found}
    there |= {("Secret", secret) for secret in GIVEN} | {("ServiceAccount", "default")}
    for _, template in pod_specs(found):
        spec = template["spec"]
        wanted = {("Secret", one["name"]) for one in spec.get("imagePullSecrets", [])}
        wanted |= {("Secret", one["name"]) for one in values_of(spec, "secretKeyRef")}
        wanted |= {("Secret", secret) for secret in values_of(spec, "secretName")}
        wanted |= {("ConfigMap", one["name"]) for one in values_of(spec, "configMap")}
        wanted |= {("PersistentVolumeClaim", claim) for claim in values_of(spec, "claimName")}
        wanted.add(("ServiceAccount", spec.get("serviceAccountName", "default")))
        assert wanted <= there
    for binding in of_kind(found, "RoleBinding"):
        assert ("Role", binding["roleRef"]["name"]) in there
        for subject in binding["subjects"]:
            assert (subject["kind"], subject["name"]) in there
            assert subject["namespace"] == "llm-d"


@pytest.mark.parametrize("name", ALL)
def test_mounts_have_their_volumes_and_files_are_where_arguments_say(name: str) -> None:
    found = rendered(name)
    for _, template in pod_specs(found):
        volumes = {one["name"]: one for one in template["spec"].get("volumes", [])}
        for container in containers(template):
            mounts = {one["mountPath"]: one["name"] for one in container.get("volumeMounts", [])}
            assert set(mounts.values()) <= set(volumes)
            text = " ".join(container.get("args", []))
            for path in re.findall(r"--config-(?:file|path)[= ](\S+)", text):
                folder, _, file = path.rpartition("/")
                config = volumes[mounts[folder]]["configMap"]["name"]
                assert file in named(found, "ConfigMap", config)["data"]


@pytest.mark.parametrize("name", ALL)
def test_nothing_reaches_beyond_the_namespace(name: str) -> None:
    for one in rendered(name):
        assert one["kind"] in NAMESPACED
        assert one["metadata"].get("namespace", "llm-d") == "llm-d"
    for role in of_kind(rendered(name), "Role"):
        for rule in role["rules"]:
            assert set(rule["verbs"]) <= {"get", "list", "watch"}


@pytest.mark.parametrize("name", ["sim", "cpu", "gpu-small", "gpu-pd", "standalone-all"])
def test_standalone_needs_no_custom_resource_of_the_gateway(name: str) -> None:
    groups = {one["apiVersion"].partition("/")[0] for one in rendered(name)}
    assert not {group for group in groups if "gateway" in group or "llm-d" in group}
    assert "inference.networking.k8s.io" not in str(of_kind(rendered(name), "Role"))


def test_images_are_pinned_and_the_pins_are_listed() -> None:
    listed = (ROOT / "worker_cluster" / "UPSTREAM.md").read_text()
    images = {
        image for name in ALL for _, one in pod_specs(rendered(name)) for image in _images(one)
    }
    assert len(images) == 7
    for image in images:
        assert re.search(r":[\w.-]*\d[\w.-]*$", image), image
        assert f"`{image}`" in listed


def _images(template: Object) -> list[str]:
    return [one["image"] for one in containers(template)]


@pytest.mark.parametrize("name", PROFILES)
def test_no_profile_brings_a_secret(name: str) -> None:
    assert of_kind(rendered(name), "Secret") == []


def test_a_token_is_written_into_its_secret_and_nowhere_else() -> None:
    found = rendered("token-made")
    holding = [one["kind"] for one in found if "hf_made_up" in str(one)]
    assert holding == ["Secret"]
    (container,) = containers(dict(pod_specs(found))["llm-d-decode"])
    (token,) = [one for one in container["env"] if one["name"] == "HF_TOKEN"]
    secret = named(found, "Secret", token["valueFrom"]["secretKeyRef"]["name"])
    assert secret["stringData"][token["valueFrom"]["secretKeyRef"]["key"]] == "hf_made_up"


def test_a_token_as_a_file_is_mounted_where_the_engine_looks() -> None:
    template = dict(pod_specs(rendered("standalone-all")))["llm-d-decode"]
    (container,) = containers(template)
    (path,) = [one["value"] for one in container["env"] if one["name"] == "HF_TOKEN_PATH"]
    (mount,) = [one for one in container["volumeMounts"] if path.startswith(one["mountPath"])]
    (volume,) = [one for one in template["spec"]["volumes"] if one["name"] == mount["name"]]
    (item,) = volume["secret"]["items"]
    assert path == f"{mount['mountPath']}/{item['path']}"


def test_with_a_key_of_vllms_own_probes_ask_where_none_is_needed() -> None:
    for name, path in (("standalone-all", "/health"), ("gpu-small", "/v1/models")):
        (container,) = containers(dict(pod_specs(rendered(name)))["llm-d-decode"])
        for probe in ("startupProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["path"] == path


@pytest.mark.parametrize("name", ALL)
def test_monitors_budgets_and_policies_select_something(name: str) -> None:
    found = rendered(name)
    templates = [one for _, one in pod_specs(found)]
    for monitor in of_kind(found, "PodMonitor"):
        chosen = [one for one in templates if selects(_match(monitor, "selector"), one)]
        assert chosen
        for end in monitor["spec"]["podMetricsEndpoints"]:
            assert all(end["port"] in ports(one) for one in chosen)
    for monitor in of_kind(found, "ServiceMonitor"):
        chosen = [
            one for one in of_kind(found, "Service") if selects(_match(monitor, "selector"), one)
        ]
        assert [one["metadata"]["name"] for one in chosen] == ["llm-d-epp"]
        offered = {port["name"] for port in chosen[0]["spec"]["ports"]}
        assert {end["port"] for end in monitor["spec"]["endpoints"]} <= offered
    for one in of_kind(found, "PodDisruptionBudget"):
        assert any(selects(_match(one, "selector"), template) for template in templates)
    for one in of_kind(found, "NetworkPolicy"):
        assert any(selects(_match(one, "podSelector"), template) for template in templates)


def _match(one: Object, key: str) -> dict[str, str]:
    found: dict[str, str] = one["spec"][key]["matchLabels"]
    return found


@pytest.mark.parametrize("name", ["standalone-all", "gateway-all", "external"])
def test_a_policy_lets_the_router_in_and_clients_only_to_the_router(name: str) -> None:
    policy = named(rendered(name), "NetworkPolicy", "llm-d-modelserver")
    (rule,) = policy["spec"]["ingress"]
    allowed = [one["podSelector"]["matchLabels"] for one in rule["from"] if "podSelector" in one]
    assert "ports" not in rule
    routers = [
        {key: value}
        for one in allowed
        for key, value in one.items()
        if key.startswith("llm-d-router-")
    ]
    expected = "llm-d-router-epp" if name == "external" else "llm-d-epp"
    assert [[*one.values()] for one in routers] == [[expected]]
    for _, template in pod_specs(rendered(name)):
        if "epp" in str(labels(template)):
            assert any(selects(one, template) for one in routers)


@pytest.mark.parametrize("name", ["none", "standalone-all", "gpu-pd"])
def test_a_policy_lets_the_chart_s_own_test_ask_what_it_asks(name: str) -> None:
    found = rendered(name)
    smoke = dict(pod_specs(found))["llm-d-smoke"]
    service = named(found, "Service", "llm-d")["spec"]
    (asked,) = [one for _, one in pod_specs(found) if selects(service["selector"], one)]
    target = service["ports"][0]["targetPort"]
    policies = [
        one for one in of_kind(found, "NetworkPolicy") if selects(_match(one, "podSelector"), asked)
    ]
    assert policies
    rules = [
        rule
        for one in policies
        for rule in one["spec"]["ingress"]
        for port in rule.get("ports", [])
        if port["port"] in {target, _number(asked, target)}
    ]
    assert any("from" not in rule or _admits(rule["from"], smoke) for rule in rules)


def _number(template: Object, port: str) -> int:
    """Return the number of a port that a pod names."""
    (number,) = [
        one["containerPort"]
        for container in containers(template)
        for one in container.get("ports", [])
        if one.get("name") == port
    ]
    assert isinstance(number, int)
    return number


def _admits(peers: Iterable[Object], template: Object) -> bool:
    """Return whether one of the peers is the pod, which is in the policy's own namespace."""
    return any(
        selects(one["podSelector"]["matchLabels"], template)
        for one in peers
        if "podSelector" in one and "namespaceSelector" not in one
    )


def test_another_profile_or_mode_changes_nothing_that_kubernetes_refuses_to_change() -> None:
    claims, selectors = [], []
    for name in ("cpu", "gpu-small", "gpu-pd"):
        claims.append(named(rendered(name), "PersistentVolumeClaim", "llm-d-model-cache"))
    for name in ALL:
        selectors += [
            {one["metadata"]["name"]: one["spec"]["selector"]}
            for one in of_kind(rendered(name), "Deployment")
        ]
    assert [one["spec"] for one in claims] == [claims[0]["spec"]] * 3
    for name in ("llm-d-decode", "llm-d-prefill", "llm-d-epp"):
        of_name = [one[name] for one in selectors if name in one]
        assert len(of_name) > 2
        assert of_name == [of_name[0]] * len(of_name)


@pytest.mark.parametrize("name", ALL)
def test_pods_have_time_to_end(name: str) -> None:
    for _, template in pod_specs(rendered(name)):
        limit = template["spec"].get("terminationGracePeriodSeconds", 30)
        for one in containers(template):
            before = one.get("lifecycle", {}).get("preStop", {})
            seconds = before.get("sleep", {}).get("seconds") or int(
                before.get("exec", {}).get("command", [0, 0])[1]
            )
            assert seconds < limit


@pytest.mark.parametrize("name", ALL)
def test_no_container_may_become_more_than_it_is(name: str) -> None:
    for _, template in pod_specs(rendered(name)):
        assert template["spec"]["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for one in containers(template):
            assert one["securityContext"]["allowPrivilegeEscalation"] is False
            assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in one["resources"]["limits"]


@pytest.mark.parametrize("name", ["sim", "gateway-istio", "sim-disaggregated"])
def test_a_namespace_of_pod_security_restricted_takes_what_is_not_vllm(name: str) -> None:
    for _, template in pod_specs(rendered(name)):
        spec = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= {"configMap", "emptyDir"}
        for one in containers(template):
            contexts = (spec["securityContext"], one["securityContext"])
            assert any(context.get("runAsNonRoot") for context in contexts)
            assert not any("hostPort" in port for port in one.get("ports", []))
