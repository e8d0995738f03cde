"""What `make k3s-doctor` says: the cause in words, and the command that helps."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.k3s.engine_log import of_log
from scripts.k3s.findings import Scene, findings
from tests.scripts.k3s import canned
from tests.scripts.k3s.stage import Stage, nodes

POD = canned.pod()["metadata"]["name"]


def scene(
    *pods: dict[str, Any], events: tuple[dict[str, Any], ...] = (), gpus: str = "", log: str = ""
) -> Scene:
    logs = {(POD, "modelserver"): log} if log else {}
    return Scene(pods=pods, events=events, nodes=nodes(gpus)["items"], logs=logs)


def only(found: Scene) -> tuple[str, str]:
    (one,) = findings(found)
    return one.what, one.step


def set_(value: str) -> str:
    return f"K3S_ARGS='--set {value}' make k3s-up"


@pytest.mark.parametrize(
    ("log", "words", "step"),
    [
        (canned.KV_CACHE, "16384 tokens does not fit the memory; about 3280 do", set_("model.maxModelLen=3280")),
        (canned.KV_CACHE_2024, "4096 tokens does not fit", set_("model.maxModelLen=3664")),
        (canned.KV_CACHE_NO_ESTIMATE, "8192 tokens does not fit", set_("model.maxModelLen=auto")),
        (canned.KV_CACHE_TINY, "about 112 do", "smaller model"),
        (canned.LONGER_THAN_MODEL, "context is 32768 tokens, 65536", set_("model.maxModelLen=32768")),
        (canned.NO_BLOCKS, "no memory for any context", "model.gpuMemoryUtilization=0.95"),
        (canned.TAKEN, "15.32 of 22.04 GiB are free", set_("model.gpuMemoryUtilization=0.67")),
        (canned.CUDA_OOM, "GPU's memory is full", "model.maxNumSeqs=8"),
        (canned.GATED, "meta-llama/Llama-3.1-8B-Instruct is gated", "HF_TOKEN=hf_… make k3s-up"),
        (canned.GATED, "is gated", "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct,"),
        (canned.NO_SUCH_MODEL, "has no Qwen/Qwen2.5-0.5B-Instrukt", "--set model.name=ORG/NAME --set capacityCheck"),
        (canned.NO_HUB, "huggingface.co can't be reached", "HTTPS_PROXY"),
        (canned.OLD_GPU, "no bfloat16", set_("model.dtype=float16")),
    ],
)  # fmt: skip
def test_what_the_engine_says_becomes_a_cause_and_a_step(log: str, words: str, step: str) -> None:
    what, next_step = only(scene(canned.crashed(), log=log))
    assert words in what
    assert POD in what
    assert step in next_step


def test_a_message_that_a_terminal_broke_is_understood() -> None:
    broken = canned.KV_CACHE.replace(" ", "\n", 30)
    found = of_log("x", broken)
    assert found is not None
    assert "maxModelLen=3280" in found.step


def test_a_log_that_explains_nothing_is_no_finding_of_its_own() -> None:
    assert of_log("x", "INFO all is well\n") is None


def test_a_crash_that_nobody_knows_shows_its_last_words() -> None:
    what, step = only(scene(canned.crashed(code=3), log="one\nsomething odd\n"))
    assert "exit code 3" in what
    assert "something odd" in what
    assert f"logs {POD} -c modelserver --previous" in step


def test_no_gpu_in_the_cluster() -> None:
    what, step = only(scene(canned.unscheduled(canned.NO_GPU, gpus="1")))
    assert "no node offers any" in what
    assert "container toolkit" in step
    assert "K3S_ARGS='--profile cpu' make k3s-up" in step


def test_more_gpus_than_there_are() -> None:
    what, step = only(scene(canned.unscheduled(canned.NO_GPU, gpus="4"), gpus="2"))
    assert "asks for 4 GPU(s), and the nodes have 2" in what
    assert step == set_("modelServer.gpu.count=2 --set modelServer.tensorParallelSize=2")


def test_a_gpu_that_another_pod_has() -> None:
    what, step = only(scene(canned.unscheduled(canned.NO_GPU, gpus="1"), gpus="1"))
    assert "taken by other pods" in what
    assert "describe nodes" in step


@pytest.mark.parametrize(
    ("resource", "value", "less"), [("memory", "8Gi", "4Gi"), ("cpu", "2", "1")]
)
def test_a_node_that_is_too_small(resource: str, value: str, less: str) -> None:
    message = f"0/1 nodes are available: 1 Insufficient {resource}. preemption: not helpful."
    what, step = only(scene(canned.unscheduled(message)))
    assert f"asks for {value} {resource}" in what
    assert step == set_(f"modelServer.resources.requests.{resource}={less}")


def test_the_router_pod_is_not_helped_by_the_model_servers_values() -> None:
    pod = canned.unscheduled("0/1 nodes are available: 1 Insufficient memory.", name="llm-d-epp")
    pod["spec"]["containers"][0]["name"] = "epp"
    what, step = only(scene(pod))
    assert "llm-d-epp asks for 8Gi memory" in what
    assert "describe nodes" in step


def test_both_that_are_lacking_are_told() -> None:
    message = "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."
    assert len(findings(scene(canned.unscheduled(message)))) == 2


def test_a_volume_that_nobody_provides() -> None:
    message = "pod has unbound immediate PersistentVolumeClaims. not found"
    what, step = only(scene(canned.unscheduled(message)))
    assert "waits for its volume" in what
    assert "modelCache.enabled=false" in step


def test_a_node_that_refuses_for_another_reason_is_quoted() -> None:
    message = "0/1 nodes are available: 1 node(s) had untolerated taint(s)."
    assert "untolerated taint" in only(scene(canned.unscheduled(message)))[0]


PULL = f'failed to pull and unpack image "{canned.IMAGE}": '


@pytest.mark.parametrize(
    ("said", "words", "step"),
    [
        (f"{PULL}{canned.IMAGE}: not found", "no such tag", "engine.image"),
        (f"{PULL}unexpected status: 401 Unauthorized", "refuses", "imagePullSecrets"),
        (f"{PULL}dial tcp: lookup registry-1.docker.io: no such host", "can't be reached", "HTTPS_PROXY"),
        (f"{PULL}429 Too Many Requests - toomanyrequests: You have reached", "no more for now", "Wait"),
        (f"{PULL}write /var/lib/x: no space left on device", "the disk is full", "Make room"),
        ("something new", "something new", "describe pod"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_pulled(said: str, words: str, step: str) -> None:
    pod = canned.waiting("ImagePullBackOff", f'Back-off pulling image "{canned.IMAGE}"')
    what, next_step = only(scene(pod, events=(canned.event("Failed", said, of=POD),)))
    assert canned.IMAGE in what
    assert words in what
    assert step in next_step


def test_events_of_other_pods_do_not_explain_a_pull() -> None:
    pod = canned.waiting("ErrImagePull", "something new")
    event = canned.event("Failed", "no space left on device", of="another")
    assert "disk" not in only(scene(pod, events=(event,)))[0]


def test_a_token_that_is_not_there() -> None:
    pod = canned.waiting("CreateContainerConfigError", 'secret "llm-d-hf-token" not found')
    what, step = only(scene(pod))
    assert "token" in what
    assert step == "HF_TOKEN=hf_… make k3s-up"


def test_another_secret_that_is_not_there_is_quoted() -> None:
    pod = canned.waiting("CreateContainerConfigError", 'secret "mine" not found')
    assert 'secret "mine"' in only(scene(pod))[0]


def test_a_container_killed_for_its_memory_gets_more_if_there_is_more() -> None:
    what, step = only(scene(canned.crashed(reason="OOMKilled", code=137, memory="8Gi")))
    assert "more memory than it may have (8Gi)" in what
    assert step == set_("modelServer.resources.limits.memory=16Gi")


def test_a_container_killed_for_its_memory_on_a_machine_without_more() -> None:
    what, step = only(scene(canned.crashed(reason="OOMKilled", code=137, memory="16Gi")))
    assert "no more to give (31 GiB)" in what
    assert "smaller model" in step


def test_a_pod_that_was_evicted() -> None:
    message = "The node was low on resource: ephemeral-storage."
    pod = canned.pod({"phase": "Failed", "reason": "Evicted", "message": message})
    assert "disk" in only(scene(pod))[1]


def test_a_pod_that_is_refused_before_it_is_made() -> None:
    message = 'Error creating: pods "x" is forbidden: pod rejected: RuntimeClass "nvidia" not found'
    event = canned.event("FailedCreate", message, of="llm-d-decode-5d9c7b6f4")
    what, step = only(scene(events=(event, event)))
    assert "no runtime class nvidia" in what
    assert "sudo systemctl restart k3s && make k3s-up" in step
    ready = {"name": "modelserver", "ready": True, "state": {"running": {}}}
    made = canned.pod({"phase": "Running", "containerStatuses": [ready]})
    assert findings(scene(made, events=(event,))) == []  # it was, since


def test_a_model_that_loads_is_told_as_such() -> None:
    container = {
        "name": "modelserver",
        "ready": False,
        "state": {"running": {"startedAt": "2026-11-20T09:12:05Z"}},
        "lastState": {},
    }
    pod = canned.pod({"phase": "Running", "containerStatuses": [container]})
    what, step = only(scene(pod, log="Loading safetensors checkpoint shards:  50%\n"))
    assert "not ready yet; it says: Loading safetensors" in what
    assert step.startswith("Wait")


def test_what_is_well_or_over_is_no_finding() -> None:
    ready = {"name": "modelserver", "ready": True, "state": {"running": {}}}
    ended = {"terminated": {"exitCode": 0, "reason": "Completed"}}
    test = {"name": "smoke", "ready": False, "state": ended}
    leaving = canned.crashed()
    leaving["metadata"]["deletionTimestamp"] = "2026-11-20T09:12:05Z"
    pods = (
        canned.pod({"phase": "Running", "containerStatuses": [ready]}),
        canned.pod({"phase": "Succeeded", "containerStatuses": [test]}, name="llm-d-smoke"),
        leaving,
    )
    assert findings(scene(*pods)) == []


# -- the command ----------------------------------------------------------------------------------


def test_the_doctor_reads_the_log_of_the_run_that_failed(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.up() == 0
    capsys.readouterr()
    assert stage.run("doctor") == 0
    assert capsys.readouterr().out == "No fault was found.\n"
    stage.says("kubectl", "*get pods*", {"items": [canned.crashed()]})
    stage.says("kubectl", f"*logs {POD} *--container modelserver*--previous", canned.KV_CACHE)
    assert stage.run("doctor") == 1
    out = capsys.readouterr().out
    assert "  next: K3S_ARGS='--set model.maxModelLen=3280' make k3s-up\n" in out


def test_the_doctor_looks_from_the_outside_in(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.run("doctor") == 1
    assert "make k3s-up" in capsys.readouterr().err
    assert stage.up() == 0
    capsys.readouterr()

    def doctor() -> str:
        assert stage.run("doctor") == 1
        return capsys.readouterr().out

    ready = {"type": "Ready", "status": "True"}
    stage.says("kubectl", "*get pods*", {"items": [canned.pod({"conditions": [ready]})]})
    stage.end()
    assert f"http://127.0.0.1:{stage.port} does not answer" in doctor()
    (stage.folder / "release").write_text("pending-upgrade")
    assert "pending-upgrade" in doctor()
    (stage.folder / "release").unlink()
    assert "is not installed" in doctor()
    (stage.folder / "namespace").unlink()
    assert "The namespace llm-d is not there" in doctor()
    refused = "The connection to the server 127.0.0.1:6443 was refused"
    stage.says("kubectl", "*get namespace*", error=refused, code=1)
    found = doctor()
    assert refused in found
    assert "Is Docker running?" in found
