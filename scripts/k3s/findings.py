"""What is wrong with the pods, from what Kubernetes says of them: findings with their next step.

All of this is pure: the objects are those of `kubectl get … -o json`, the logs are text. Where the
wording of Kubernetes, containerd or vLLM matters, it is quoted beside the rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.k3s.choice import again, other_model
from scripts.k3s.engine_log import Finding, of_log
from scripts.k3s.existing import gpus_of
from scripts.k3s.pins import SECRET
from scripts.k3s.quantity import doubled, gib, halved

Object = Mapping[str, Any]
_MODEL_SERVER = "modelserver"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What was asked of the cluster."""

    pods: Sequence[Object]
    events: Sequence[Object]
    nodes: Sequence[Object]
    logs: Mapping[tuple[str, str], str]
    """The end of a container's last log, by pod and container."""
    kubectl: str = "kubectl"


def findings(scene: Scene) -> list[Finding]:
    """Return what is wrong, each thing once."""
    found = [one for pod in scene.pods for one in _of_pod(pod, scene)]
    found += list(_of_controllers(scene))
    return list(dict.fromkeys(found))


def _of_pod(pod: Object, scene: Scene) -> Iterator[Finding]:
    status = pod.get("status", {})
    if pod.get("metadata", {}).get("deletionTimestamp"):
        return
    if status.get("reason") == "Evicted":
        yield _evicted(pod)
        return
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield from _unscheduled(pod, str(condition.get("message", "")), scene)
    for key in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(key) or []:
            yield from _of_container(pod, container, scene)


def _evicted(pod: Object) -> Finding:
    message = str(pod["status"].get("message", ""))
    what = f"{_name(pod)} was thrown off its node: {message}"
    if "ephemeral-storage" in message or "disk" in message.lower():
        return Finding(what, "Make room on the disk: images and models take 20 GB and more.")
    return Finding(what, f"Take a smaller model: {other_model()}")


def _unscheduled(pod: Object, message: str, scene: Scene) -> Iterator[Finding]:
    # kube-scheduler: "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: …"
    lacking = re.findall(r"Insufficient ([\w./-]+\w)", message)
    for resource in lacking:
        yield _insufficient(pod, resource, scene)
    if "unbound immediate PersistentVolumeClaims" in message:
        yield Finding(
            f"{_name(pod)} waits for its volume, which nobody provides",
            f"{scene.kubectl} get storageclass has to show a default one; without a model cache: "
            + again("--set modelCache.enabled=false"),
        )
    elif not lacking:
        yield Finding(f"{_name(pod)} has no node: {message}", f"{scene.kubectl} describe nodes")


def _insufficient(pod: Object, resource: str, scene: Scene) -> Finding:
    if resource == "nvidia.com/gpu":
        return _insufficient_gpu(pod, scene)
    wanted = _requested(pod, resource)
    what = f"{_name(pod)} asks for {wanted or 'more'} {resource}, and no node has that left"
    less = {"cpu": "1", "memory": halved(wanted)}.get(resource, "")
    if not less or not _resource(pod, _MODEL_SERVER, "requests", resource):
        return Finding(what, f"{scene.kubectl} describe nodes shows who has it")
    return Finding(what, again(f"--set modelServer.resources.requests.{resource}={less}"))


def _insufficient_gpu(pod: Object, scene: Scene) -> Finding:
    wanted = _requested(pod, "nvidia.com/gpu") or "1"
    have = gpus_of({"items": scene.nodes})
    what = f"{_name(pod)} asks for {wanted} GPU(s)"
    if have == 0:
        return Finding(
            f"{what}, and no node offers any: nvidia.com/gpu is not in its allocatable resources",
            "nvidia-smi has to work on the node, NVIDIA's container toolkit has to be there before k3s "
            "starts, then: sudo systemctl restart k3s && make k3s-up. A k3s of your own, or another cluster, "
            "needs its device plugin from you: https://github.com/NVIDIA/k8s-device-plugin. "
            f"Without a GPU: {again('--profile cpu')}",
        )
    if int(wanted) > have:
        return Finding(
            f"{what}, and the nodes have {have}",
            again(
                f"--set modelServer.gpu.count={have} --set modelServer.tensorParallelSize={have}"
            ),
        )
    return Finding(
        f"{what}; the {have} of the nodes are taken by other pods",
        f"{scene.kubectl} describe nodes shows by whom. One copy of the model: "
        + again("--set modelServer.replicas=1"),
    )


def _of_container(pod: Object, container: Object, scene: Scene) -> Iterator[Finding]:
    name = str(container.get("name", ""))
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    if reason in {"ImagePullBackOff", "ErrImagePull", "InvalidImageName"}:
        yield _image(pod, container, message, scene)
    elif reason == "CreateContainerConfigError":
        yield _config(pod, message, scene)
    elif ended and not container.get("ready"):
        yield from _ended(pod, container, ended, scene)
    elif state.get("running") and not container.get("ready"):
        words = scene.logs.get((_name(pod), name), "").strip().splitlines()
        last = f"; it says: {words[-1][:200]}" if words else ""
        yield Finding(
            f"{_name(pod)} ({name}) runs and is not ready yet{last}",
            f"Wait: a first start pulls the model. {scene.kubectl} logs -f {_name(pod)} -c {name}",
        )


def _image(pod: Object, container: Object, message: str, scene: Scene) -> Finding:
    image = str(container.get("image", ""))
    said = [message, *(_messages(scene.events, _name(pod), {"Failed"}))]
    text = " ".join(said).lower()
    what = f"{_name(pod)}: the image {image} can't be pulled"
    # containerd says: failed to pull and unpack image "…": … not found
    if "no space left" in text:
        return Finding(f"{what}: the disk is full", "Make room: vLLM's image takes 10 GB and more.")
    if re.search(r"toomanyrequests|\b429\b", text):
        return Finding(
            f"{what}: the registry allows no more for now", "Wait an hour, or log in there."
        )
    if re.search(r"unauthorized|\b403\b|denied", text):
        return Finding(
            f"{what}: the registry refuses",
            "Is the name right? A private one needs a secret: "
            + again("--set imagePullSecrets[0].name=NAME"),
        )
    if "not found" in text or "manifest unknown" in text:
        return Finding(f"{what}: there is no such tag, or none for this processor", _OTHER_IMAGE)
    if re.search(r"no such host|i/o timeout|connection refused|dial tcp|lookup ", text):
        return Finding(
            f"{what}: the registry can't be reached from the cluster",
            "Does this machine reach it? Behind a proxy, k3s needs HTTPS_PROXY when it is installed.",
        )
    detail = said[-1] or "no reason is given"
    return Finding(f"{what}: {detail}", f"{scene.kubectl} describe pod {_name(pod)}")


_OTHER_IMAGE = (
    "Name another one: " + again("--set engine.image.ENGINE=IMAGE:TAG") + " (sim, vllm, vllm-cpu)"
)


def _config(pod: Object, message: str, scene: Scene) -> Finding:
    # kubelet: secret "llm-d-hf-token" not found
    if SECRET in message:
        return Finding(
            f"{_name(pod)} waits for the token of gated models, which is not there ({message})",
            "HF_TOKEN=hf_… make k3s-up",
        )
    return Finding(
        f"{_name(pod)} lacks something: {message}", f"{scene.kubectl} describe pod {_name(pod)}"
    )


def _ended(pod: Object, container: Object, ended: Object, scene: Scene) -> Iterator[Finding]:
    name, code = str(container.get("name", "")), ended.get("exitCode")
    where = f"{_name(pod)} ({name})"
    if ended.get("reason") == "OOMKilled":
        yield _out_of_memory(pod, name, where, scene)
        return
    log = scene.logs.get((_name(pod), name), "")
    told = of_log(where, log)
    if told is None and code == 0:
        return
    words = log.strip().splitlines()
    last = f"; its last words: {words[-1][:300]}" if words else ""
    again_and_again = " --previous" if container.get("lastState") else ""
    yield told or Finding(
        f"{where} ended with exit code {code}{last}",
        f"{scene.kubectl} logs {_name(pod)} -c {name}{again_and_again}",
    )


def _out_of_memory(pod: Object, name: str, where: str, scene: Scene) -> Finding:
    limit = _resource(pod, name, "limits", "memory")
    what = (
        f"{where} took more memory than it may have ({limit or 'no limit is set'}) and was killed"
    )
    roomy = [gib(_allocatable(node, "memory")) for node in scene.nodes]
    if (
        name == _MODEL_SERVER
        and limit
        and doubled(limit)
        and gib(doubled(limit)) <= max(roomy, default=0)
    ):
        return Finding(what, again(f"--set modelServer.resources.limits.memory={doubled(limit)}"))
    if name != _MODEL_SERVER:
        return Finding(what, f"{scene.kubectl} describe pod {_name(pod)}; report it with the log")
    return Finding(
        f"{what}; the machine has no more to give ({max(roomy, default=0):.0f} GiB)",
        "Take a smaller model or a shorter context: "
        + other_model(" --set model.maxModelLen=2048"),
    )


def _of_controllers(scene: Scene) -> Iterator[Finding]:
    """Yield why pods were not even made: there is no pod that could tell."""
    for event in scene.events:
        message = str(event.get("message", ""))
        maker = str((event.get("involvedObject") or {}).get("name", "?"))
        if event.get("reason") != "FailedCreate" or any(
            _name(pod).startswith(f"{maker}-") for pod in scene.pods
        ):
            continue  # events outlive what they tell of: the pod was made since
        # ReplicaSet: pods "…" is forbidden: pod rejected: RuntimeClass "nvidia" not found
        if 'RuntimeClass "nvidia" not found' in message:
            yield Finding(
                "The model's pod is refused: the cluster has no runtime class nvidia",
                "Install NVIDIA's container toolkit, then: sudo systemctl restart k3s && make k3s-up. In a "
                f"cluster that needs none: {again('--set modelServer.gpu.runtimeClassName=')}",
            )
        elif "exceeded quota" in message:
            yield Finding(
                f"The namespace's quota is too small: {message}",
                f"{scene.kubectl} get resourcequota",
            )
        else:
            yield Finding(f"A pod is refused: {message}", f"{scene.kubectl} get events")


def _name(pod: Object) -> str:
    return str(pod.get("metadata", {}).get("name", "?"))


def _messages(events: Sequence[Object], pod: str, reasons: set[str]) -> list[str]:
    return [
        str(event.get("message", ""))
        for event in events
        if event.get("reason") in reasons and (event.get("involvedObject") or {}).get("name") == pod
    ]


def _requested(pod: Object, resource: str) -> str:
    """Return the request of the first container that has one, as it is written."""
    names = [str(one.get("name", "")) for one in pod.get("spec", {}).get("containers") or []]
    found = [_resource(pod, name, "requests", resource) for name in names]
    return next(filter(None, found), "")


def _resource(pod: Object, container: str, kind: str, resource: str) -> str:
    for one in pod.get("spec", {}).get("containers") or []:
        if one.get("name") == container:
            return str(((one.get("resources") or {}).get(kind) or {}).get(resource, ""))
    return ""


def _allocatable(node: Object, resource: str) -> str:
    return str((node.get("status", {}).get("allocatable") or {}).get(resource, "0"))
