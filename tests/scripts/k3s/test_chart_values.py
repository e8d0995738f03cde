"""The values that `make k3s-up` sets, and those that `make k3s-doctor` names, are ones of the chart."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.k3s.chart import FOLDER, Chart
from scripts.k3s.choice import Choice
from scripts.k3s.k3d import K3d
from scripts.k3s.native import Native
from scripts.k3s.pins import PORT_NAME, RELEASE, SECRET, SERVICE
from scripts.k3s.tools import Tools
from tests.chart.kubernetes import is_core
from tests.chart.rendering import CHART, containers, helm, objects, pod_specs
from tests.scripts.k3s.stage import INSTALL, PROFILES, Stage

ROOT = Path(__file__).parents[3]


def named() -> set[str]:
    """Return the keys in all messages: everything after `--set`."""
    texts = "".join(path.read_text() for path in (ROOT / "scripts/k3s").glob("*.py"))
    return set(re.findall(r"--set ([a-zA-Z][\w.]*[\w](?:\[0\](?:\.\w+)?)?)=", texts))


def is_there(key: str, values: Any) -> bool:
    for part in key.split("[", maxsplit=1)[0].split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return "[" not in key or isinstance(values, list)


def test_every_value_that_is_named_is_one_of_the_chart(stage: Stage) -> None:
    gpu = Choice(driver="native", install=INSTALL, profile="gpu-small", needs_gpu=True)
    machine = replace(stage.machine, gpu_memory_gib=24.0)
    tools = Tools(stage.home / "kubeconfig", stage.env)
    sets = [
        *K3d(tools, machine).values(replace(gpu, driver="k3d")),
        *Native(tools, machine, lambda _: b"", install=INSTALL).values(gpu),
        f"secrets.hfToken.existingSecret={SECRET}",
    ]
    keys = named() | {one.split("=")[0] for one in sets}
    assert {"model.maxModelLen", "service.nodePort", "capacityCheck.gpuMemoryGiB"} <= keys
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    values["engine"]["image"]["ENGINE"] = ""  # stands for one of its keys
    assert [key for key in sorted(keys) if not is_there(key, values)] == []


def test_the_names_are_those_of_the_chart() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["service"]["name"] == SERVICE == RELEASE
    service = (CHART / "templates/service.yaml").read_text()
    assert f"- name: {PORT_NAME}\n" in service
    assert set(Chart(ROOT / FOLDER).profiles) == set(PROFILES)


NO_CHECK = "capacityCheck.enabled=false"
GATEWAY = "mode=gateway,gateway.className=gke"


@pytest.mark.parametrize(
    ("profile", "sets"),
    [
        *((profile, ()) for profile in PROFILES),
        ("gpu-small", ("engine.type=sim",)),
        ("sim", ("engine.type=vllm",)),
        ("gateway-istio", (f"model.dtype=float16,engine.type=vllm,{NO_CHECK}",)),
        ("gateway-istio", ("router.objectives=null", "gateway.className=agentgateway")),
        ("gateway-agentgateway", ("mode=standalone", "router.objectives=null")),
        ("cpu", (GATEWAY, "router.objectives[0].name=a,router.objectives[0].priority=1")),
        ("cpu", ("engine.type=vllm", "modelServer.gpu.count=0")),
        ("gpu-small", (r"modelServer.nodeSelector.example\.com/engine\.type=sim",)),
        ("gpu-small", ("modelServer.gpu.resource=amd.com/gpu",)),
        ("gpu-small", (r"modelServer.podAnnotations.a=b\,engine.type=sim",)),
        ("gpu-small", ("model.extraArgs={--a,engine.type=sim}",)),
    ],
)
def test_what_will_run_is_what_helm_makes_of_the_same_values(
    profile: str, sets: tuple[str, ...]
) -> None:
    words = [word for one in sets for word in ("--set", one)]
    values = str(CHART / "values" / f"{profile}.yaml")
    found = objects(helm("template", "llm-d", str(CHART), "--values", values, *words))
    template = dict(pod_specs(found))["llm-d-decode"]
    runs = Chart(ROOT / FOLDER).runs(profile, sets)
    assert runs.engine == template["metadata"]["labels"]["llm-d.ai/engine"]
    limits = [one["resources"].get("limits", {}) for one in containers(template)]
    assert runs.needs_gpu == any("nvidia.com/gpu" in one for one in limits)
    further = {
        (one["apiVersion"].partition("/")[0], one["kind"]) for one in found if not is_core(one)
    }
    assert set(runs.crds) == {f"{kind.lower()}s.{group}" for group, kind in further}
