"""`make k3s-doctor`: asks the cluster, and says what is wrong and what to do."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.devstack.probes import get
from scripts.devstack.text import say
from scripts.k3s import forward, immutable
from scripts.k3s.choice import Choice, again
from scripts.k3s.engine_log import Finding
from scripts.k3s.errors import ClusterError
from scripts.k3s.findings import Scene, findings
from scripts.k3s.pins import RELEASE, SERVICE
from scripts.k3s.release import namespace_owner, release_story
from scripts.k3s.tools import Tools

_LOG_LINES = "200"
_CLAIM = re.compile(r'persistentvolumeclaims? "([\w.-]+)" is (?:invalid|forbidden)', re.IGNORECASE)
"""Of Kubernetes: a claim was to shrink (`field can not be less than …`), to grow where its class does not let it
(`only dynamically provisioned pvc can be resized …`), or to have another class (`spec is immutable …`)."""
_START_AGAIN = {
    "k3d": "Is Docker running? Then: make k3s-up",
    "native": "sudo systemctl start k3s, then sudo journalctl -u k3s -n 50",
    "existing": "Is it up, and does the kubeconfig still hold? "
    + again("--driver existing --kubeconfig FILE"),
}


def examine(tools: Tools, choice: Choice, folder: Path) -> list[Finding]:
    """Return what is wrong, from the outside in: what is out of reach hides what lies behind."""
    if not tools.kubeconfig.is_file():
        return [Finding("There is no cluster yet", "make k3s-up")]
    try:
        owner = namespace_owner(tools, choice.namespace)
    except ClusterError as failure:
        said = str(failure).splitlines()[0]
        return [Finding(said, _START_AGAIN[choice.driver])]
    if owner is None:
        return [Finding(f"The namespace {choice.namespace} is not there", "make k3s-up")]
    if owner != choice.install:
        what = f"The namespace {choice.namespace} is not ours, and neither is what runs in it"
        return [Finding(what, again("--namespace llm-d-2"))]
    scene = _scene(tools, choice.namespace)
    inside = [*findings(scene), *_way_in(choice, scene, folder)]
    return [*_release(tools, choice.namespace, bool(inside)), *inside]


def tell(found: list[Finding]) -> int:
    """Say all findings; return the exit code."""
    if not found:
        say("No fault was found.")
    for one in found:
        say(f"- {one.what}\n  next: {one.step}")
    return 1 if found else 0


def _release(tools: Tools, namespace: str, has_cause: bool) -> list[Finding]:
    """Return what is wrong with the release; that its last change failed, if there is no cause for it."""
    status, said = release_story(tools, namespace)
    claim = _CLAIM.search(said)
    if status == "failed" and claim:
        uninstall = tools.helm("uninstall", RELEASE, "--namespace", namespace, "--wait")
        delete = tools.kubectl("delete", "pvc", claim[1], "--namespace", namespace)
        return [
            Finding(
                f"The volume of the models ({claim[1]}) can't be changed as the values ask: {said}",
                "Take back what was set of modelCache (K3S_ARGS=--forget make k3s-up forgets all that was set), "
                "or delete it with the models in it: "
                f"{shlex.join(uninstall)} && {shlex.join(delete)} && make k3s-up",
            )
        ]
    fixed = immutable.finding(tools, namespace, said) if status == "failed" else None
    if fixed is not None:
        return [fixed]
    if status == "failed" and not has_cause:
        return [Finding(f"The last change of the release {RELEASE} failed: {said}", "make k3s-up")]
    if not status:
        return [Finding(f"The release {RELEASE} is not installed", "make k3s-up")]
    if status.startswith("pending"):
        return [
            Finding(
                f"The release {RELEASE} is {status}: helm works on it, or was killed", "make k3s-up"
            )
        ]
    return []


def _way_in(choice: Choice, scene: Scene, folder: Path) -> list[Finding]:
    """Return what is wrong between the router and pods that are well."""
    if choice.driver == "existing" and not forward.is_running(folder):
        what = f"Nothing forwards port {choice.port} into the cluster"
        return [Finding(what, f"make k3s-up (log: {forward.log(folder)})")]
    if not choice.endpoint or not _all_ready(scene.pods):
        return []
    status, _ = asyncio.run(get(f"{choice.endpoint}/v1/models"))
    if status in {200, 401}:  # 401: the model servers have a key of their own
        return []
    said = f"answers {status}" if status else "does not answer"
    return [
        Finding(
            f"All pods are ready, and {choice.endpoint} {said}",
            f"{scene.kubectl} get endpointslices -l kubernetes.io/service-name={SERVICE}; then make k3s-up",
        )
    ]


def _all_ready(pods: Any) -> bool:
    conditions = [
        condition
        for pod in pods
        if pod.get("status", {}).get("phase") != "Succeeded"  # helm's test is over
        for condition in pod.get("status", {}).get("conditions") or []
        if condition.get("type") == "Ready"
    ]
    return bool(conditions) and all(one.get("status") == "True" for one in conditions)


def _scene(tools: Tools, namespace: str) -> Scene:
    here = ("--namespace", namespace)
    pods = _items(tools, "get", "pods", *here)
    return Scene(
        pods=pods,
        events=_items(tools, "get", "events", *here),
        nodes=_items(tools, "get", "nodes"),
        logs=_logs(tools, here, pods),
        kubectl=shlex.join(tools.kubectl(*here)),
    )


def _items(tools: Tools, *arguments: str) -> list[Mapping[str, Any]]:
    found = tools.read(tools.kubectl(*arguments, "-o", "json")).value or {}
    return list(found.get("items") or [])


def _logs(
    tools: Tools, here: tuple[str, str], pods: list[Mapping[str, Any]]
) -> dict[tuple[str, str], str]:
    """Return the ends of the logs of containers that are not ready: the last run's, if one ended."""
    logs = {}
    for pod in pods:
        status, name = pod.get("status", {}), str(pod.get("metadata", {}).get("name"))
        both = [
            *(status.get("initContainerStatuses") or []),
            *(status.get("containerStatuses") or []),
        ]
        for container in (one for one in both if not one.get("ready")):
            ended = (container.get("lastState") or {}).get("terminated")
            previous = ["--previous"] if ended and not container["state"].get("terminated") else []
            words = ["logs", name, *here, "--container", container["name"], "--tail", _LOG_LINES]
            logs[name, container["name"]] = tools.read(tools.kubectl(*words, *previous)).output
    return logs
