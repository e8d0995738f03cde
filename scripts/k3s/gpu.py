"""GPUs of our own k3s: the runtime class that k3s makes, and NVIDIA's device plugin."""

from __future__ import annotations

import json
import time
from typing import Any

from scripts.devstack.text import Waiting, say
from scripts.k3s.errors import ClusterError
from scripts.k3s.existing import gpus_of
from scripts.k3s.pins import DEVICE_PLUGIN_IMAGE, OWNER_LABEL
from scripts.k3s.tools import Tools

_NAME = "nvidia-device-plugin"
_PAUSE_S = 2.0
_SOCKETS = "/var/lib/kubelet/device-plugins"
_HINT = (
    "Look: kubectl --kubeconfig {0} -n kube-system logs -l name=nvidia-device-plugin. "
    "The container toolkit has to be there before k3s starts: sudo systemctl restart k3s"
)


def offer_gpus(tools: Tools, install: str, *, wait_s: float) -> None:
    """Return when the node offers its GPUs to pods; installs the device plugin if nothing does.

    Args:
        tools: reach our own k3s.
        install: the id that the device plugin is labelled with.
        wait_s: how long the GPUs may take to appear.

    Raises:
        ClusterError: k3s found no runtime for GPUs, or they do not appear.
    """
    if not tools.is_dry and _offered(tools):
        return
    if not tools.is_dry:
        _need_runtime(tools)
    apply = tools.kubectl("apply", "-f", "-")
    say(f"installing NVIDIA's device plugin ({DEVICE_PLUGIN_IMAGE})")
    tools.act("installing the device plugin", apply, stdin=json.dumps(_device_plugin(install)))
    if not tools.is_dry:
        _await_gpus(tools, wait_s)


def _offered(tools: Tools) -> int:
    return gpus_of(tools.read(tools.kubectl("get", "nodes", "-o", "json")).value)


def _need_runtime(tools: Tools) -> None:
    got = tools.read(tools.kubectl("get", "runtimeclass", "nvidia", "-o", "name"))
    if got.code != 0:
        raise ClusterError(
            "k3s has no runtime class nvidia: it found no nvidia-container-runtime when it started. "
            "Install NVIDIA's container toolkit, then: sudo systemctl restart k3s && make k3s-up"
        )


def _await_gpus(tools: Tools, wait_s: float) -> None:
    waiting = Waiting("waiting for the GPU")
    until = time.monotonic() + wait_s
    try:
        while not _offered(tools):
            if time.monotonic() > until:
                hint = _HINT.format(tools.kubeconfig)
                raise ClusterError(f"The node offers no GPU after {wait_s:.0f} s. {hint}")
            waiting.tick()
            time.sleep(_PAUSE_S)
    finally:
        waiting.clear()


def _device_plugin(install: str) -> dict[str, Any]:
    """Return the DaemonSet; its sockets are those of the kubelet, so it can't run restricted."""
    container = {
        "name": _NAME,
        "image": DEVICE_PLUGIN_IMAGE,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "sockets", "mountPath": _SOCKETS}],
    }
    pod = {
        "runtimeClassName": "nvidia",
        "priorityClassName": "system-node-critical",
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        ],
        "containers": [container],
        "volumes": [{"name": "sockets", "hostPath": {"path": _SOCKETS, "type": "Directory"}}],
    }
    labels = {"name": _NAME}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": _NAME,
            "namespace": "kube-system",
            "labels": {**labels, OWNER_LABEL: install},
        },
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
