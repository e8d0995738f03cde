"""The values that `make k3s-up` sets, and those that `make k3s-doctor` names, are ones of the chart."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from scripts.k3s.choice import CHART, Choice, profiles_of
from scripts.k3s.k3d import K3d
from scripts.k3s.native import Native
from scripts.k3s.pins import PORT_NAME, RELEASE, SECRET, SERVICE
from scripts.k3s.tools import Tools
from tests.scripts.k3s.stage import PROFILES, Stage

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
    gpu = Choice(driver="native", profile="gpu-small")
    machine = replace(stage.machine, gpu_memory_gib=24.0)
    tools = Tools(stage.home / "kubeconfig", stage.env)
    sets = [
        *K3d(tools, machine).values(replace(gpu, driver="k3d")),
        *Native(tools, machine, lambda _: b"").values(gpu),
        f"secrets.hfToken.existingSecret={SECRET}",
    ]
    keys = named() | {one.split("=")[0] for one in sets}
    assert {"model.maxModelLen", "service.nodePort", "capacityCheck.gpuMemoryGiB"} <= keys
    values = yaml.safe_load((ROOT / CHART / "values.yaml").read_text())
    values["engine"]["image"]["ENGINE"] = ""  # stands for one of its keys
    assert [key for key in sorted(keys) if not is_there(key, values)] == []


def test_the_names_are_those_of_the_chart() -> None:
    values = yaml.safe_load((ROOT / CHART / "values.yaml").read_text())
    assert values["service"]["name"] == SERVICE == RELEASE
    service = (ROOT / CHART / "templates/service.yaml").read_text()
    assert f"- name: {PORT_NAME}\n" in service
    assert set(profiles_of(ROOT / CHART)) == set(PROFILES)
