"""Our namespace, the token for gated models, and the chart's release in it."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

from scripts.devstack.text import say
from scripts.k3s.chart import FOLDER, SIMULATOR, Chart
from scripts.k3s.choice import Choice, again
from scripts.k3s.errors import ClusterError, NotOurs, ToolFailed, Unreachable
from scripts.k3s.pins import OWNER_LABEL, RELEASE, SECRET, SERVICE
from scripts.k3s.tools import Tools

_OLDEST_HELM = (3, 13)
_NODES_S = 120.0
_PAUSE_S = 1.0
_LOOK = "Does `kubectl get nodes` work with its kubeconfig? If it is k3s of this machine: make k3s-doctor"
DOCTOR = "make k3s-doctor says more."


def need_programs(tools: Tools) -> None:
    """Raise `ToolMissing` or `ClusterError` unless a fitting helm is there; kubectl may come with k3s."""
    said = tools.read(["helm", "version", "--template", "{{.Version}}"])
    found = re.match(r"v?(\d+)\.(\d+)", said.output)
    if found is None:
        raise ClusterError(f"helm does not tell its version: {said.reason}")
    if (int(found[1]), int(found[2])) < _OLDEST_HELM:
        raise ClusterError(
            f"helm {said.output.strip()} is too old, 3.13 or newer is needed: "
            "https://helm.sh/docs/intro/install"
        )


def wait_for_nodes(tools: Tools, hint: str) -> None:
    """Return when the nodes are ready; raises `ToolFailed`, with the hint.

    A k3s that has just started does not know its own node yet, which `kubectl wait` takes for an error.
    """
    until = time.monotonic() + _NODES_S
    while not tools.is_dry and time.monotonic() < until:
        if tools.read(tools.kubectl("get", "nodes", "-o", "name")).output.strip():
            break
        time.sleep(_PAUSE_S)
    wait = tools.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=180s")
    tools.act("waiting for the node", wait, hint=hint)


def ensure_namespace(tools: Tools, choice: Choice) -> None:
    """Make the namespace with our label; raises `NotOurs` if somebody else made it."""
    name, mark = choice.namespace, f"{OWNER_LABEL}={choice.install}"
    if tools.is_dry and not tools.kubeconfig.is_file():
        say(f"would make: namespace {name}, labelled {mark}")
        return
    found = namespace_owner(tools, name)
    if found == choice.install:
        return
    if found is not None:
        who = "it was there before `make k3s-up`"
        if found:
            who = "another `make k3s-up` made it (or yours, if data/k3s was lost since)"
        raise NotOurs(
            f"The namespace {name} is not ours: {who}. It is left alone. "
            f"Use another one: {again('--namespace llm-d-2')}, or hand it over: {_hand_over(tools, choice)}"
        )
    labels = {OWNER_LABEL: choice.install}
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    create = tools.kubectl("create", "-f", "-")
    tools.act("making the namespace", create, stdin=json.dumps(made), hint=DOCTOR)


def _hand_over(tools: Tools, choice: Choice) -> str:
    """Return the command by which a namespace becomes ours."""
    label = f"{OWNER_LABEL}={choice.install}"
    return shlex.join(tools.kubectl("label", "namespace", choice.namespace, label, "--overwrite"))


def namespace_owner(tools: Tools, name: str) -> str | None:
    """Return whose the namespace is by its label, "" if it has none, None if it is not there.

    Raises:
        Unreachable: the cluster does not answer.
    """
    got = tools.read(tools.kubectl("get", "namespace", name, "--ignore-not-found", "-o", "json"))
    if got.code != 0:
        raise Unreachable(f"The cluster does not answer: {got.reason}\n{_LOOK}")
    if got.value is None:
        return None
    return str((got.value["metadata"].get("labels") or {}).get(OWNER_LABEL, ""))


def ensure_token(tools: Tools, choice: Choice, token: str, *, is_ours: bool) -> list[str]:
    """Keep the token for gated models as a secret; return the chart's value that names it.

    It goes by standard input: command lines can be read by every program of the machine. Into a cluster
    that is not ours it goes with consent only.
    """
    if choice.engine == SIMULATOR:
        return []
    namespace = choice.namespace
    value = [f"secrets.hfToken.existingSecret={SECRET}"]
    asked = f"Keep HF_TOKEN as the secret {SECRET} in the namespace {namespace}?"
    if token and (is_ours or tools.may(asked)):
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": SECRET,
                "namespace": namespace,
                "labels": {OWNER_LABEL: choice.install},
            },
            "stringData": {"HF_TOKEN": token},
        }
        say(f"HF_TOKEN becomes the secret {SECRET} in the namespace {namespace}")
        # by the server: else kubectl writes the token into an annotation, and repeats it where it fails
        apply = tools.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-")
        tools.act("keeping the token", apply, stdin=json.dumps(secret), hint=DOCTOR)
        return value
    get = tools.kubectl("get", "secret", SECRET, "--namespace", namespace, "-o", "name")
    return value if tools.kubeconfig.is_file() and tools.read(get).code == 0 else []


def need_crds(tools: Tools, choice: Choice, crds: tuple[str, ...]) -> None:
    """Raise `ClusterError` unless the cluster has the CRDs of a gateway; they are not ours to install."""
    if not crds:
        return
    if tools.is_dry and not tools.kubeconfig.is_file():
        say(f"would need in the cluster: {', '.join(crds)}")
        return
    listed = tools.read(tools.kubectl("get", "crd", *crds, "--ignore-not-found", "-o", "name"))
    found = {line.rpartition("/")[2] for line in listed.output.split()}
    missing = [name for name in crds if name not in found]
    if not missing and listed.code == 0:
        return
    why = f"it lacks {', '.join(missing)}" if listed.code == 0 else listed.reason
    raise ClusterError(
        f"A gateway (profile {choice.profile}) needs CRDs and a controller, which belong to the cluster and "
        f"are not installed by this: {why}\nWhose they are: worker_cluster/chart/README.md; to install them: "
        f"export KUBECONFIG={tools.kubeconfig}\nWithout a gateway: {again('--profile cpu')}"
    )


def upgrade(tools: Tools, choice: Choice, values: list[str], *, timeout: str, chart: Chart) -> None:
    """Install the release or bring it to what was chosen; what the user sets comes last and wins.

    Raises:
        ToolFailed: the chart refuses the values, or the pods did not become ready in time.
    """
    _end_what_was_interrupted(tools, choice.namespace)
    sets = [word for value in (*values, *choice.sets) for word in ("--set", value)]
    command = tools.helm(
        *("upgrade", "--install", RELEASE, str(chart.folder), "--namespace", choice.namespace),
        *(
            "--values",
            str(chart.values_file(choice.profile)),
            *sets,
            "--wait",
            "--timeout",
            timeout,
        ),
    )
    tools.act(f"waiting for llm-d ({choice.profile}; the first time takes minutes)", command)


def release_status(tools: Tools, namespace: str) -> str:
    """Return `deployed`, `failed`, `pending-install`, …; "" if there is no release."""
    return release_story(tools, namespace)[0]


def release_story(tools: Tools, namespace: str) -> tuple[str, str]:
    """Return the release's status and what helm says of it, such as why its last change failed."""
    status = tools.helm("status", RELEASE, "--namespace", namespace, "-o", "json")
    found: Any = tools.read(status).value
    info = (found or {}).get("info") or {}
    return str(info.get("status", "")), str(info.get("description", ""))


def _end_what_was_interrupted(tools: Tools, namespace: str) -> None:
    """Clear the state in which a killed helm leaves a release: the next one would refuse to go on."""
    status = release_status(tools, namespace)
    if status == "pending-install":
        say("an installation was interrupted: it is begun anew")
        uninstall = tools.helm("uninstall", RELEASE, "--namespace", namespace, "--wait")
        tools.act("ending the interrupted installation", uninstall, hint=DOCTOR)
    elif status.startswith("pending"):
        say("a change was interrupted: it is taken back first")
        back = tools.helm("rollback", RELEASE, "--namespace", namespace)
        tools.act("taking the interrupted change back", back, hint=DOCTOR)


def smoke_test(tools: Tools, namespace: str) -> None:
    """Run the chart's own test; raises `ToolFailed`."""
    test = tools.helm("test", RELEASE, "--namespace", namespace, "--logs", "--timeout", "5m")
    try:
        tools.act("asking the model a question", test)
    except ToolFailed as failure:
        raise ToolFailed(
            f"{failure}\nllm-d runs, but does not answer as it should. {DOCTOR}"
        ) from None


def cluster_address(tools: Tools, namespace: str) -> str:
    """Return the Service's address inside the cluster, which its own nodes reach.

    Raises:
        ClusterError: there is no such Service.
    """
    got = tools.read(
        tools.kubectl("get", "service", SERVICE, "--namespace", namespace, "-o", "json")
    )
    spec = (got.value or {}).get("spec") or {}
    address = spec.get("clusterIP", "")
    if not address:
        raise ClusterError(f"The Service {SERVICE} has no address: {got.reason}\n{DOCTOR}")
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{spec['ports'][0]['port']}"


def uninstall(tools: Tools, choice: Choice) -> bool:
    """Take the release out of the namespace; False if there is no namespace any more.

    Raises:
        NotOurs: the namespace does not carry our label any more.
    """
    namespace = choice.namespace
    owner = namespace_owner(tools, namespace)
    if owner is None:
        return False
    if owner != choice.install:
        raise NotOurs(
            f"The namespace {namespace} does not carry our label any more, so it is left alone. "
            f"If it is ours all the same: {_hand_over(tools, choice)}"
        )
    command = tools.helm("uninstall", RELEASE, "--namespace", namespace)
    tools.act("uninstalling llm-d", [*command, "--ignore-not-found", "--wait"], hint=DOCTOR)
    return True


def remove(tools: Tools, choice: Choice) -> None:
    """Take the release and the namespace with everything in it; raises `NotOurs`."""
    if uninstall(tools, choice):
        delete = tools.kubectl("delete", "namespace", choice.namespace, "--timeout=180s")
        tools.act("deleting the namespace", delete, hint=DOCTOR)


def chart_of(root: Path) -> Chart:
    """Return the chart, its folder as it is typed from the checkout."""
    return Chart(FOLDER if root == Path.cwd() else root / FOLDER)
