"""`make k3s-up` on k3d: from nothing to the line that the router needs, and again."""

from __future__ import annotations

import fcntl
import json
import socket
from dataclasses import replace

import pytest

from scripts.k3s.pins import CONTAINER_LABEL, K3S_IMAGE, OWNER_LABEL
from tests.scripts.k3s import canned
from tests.scripts.k3s.stage import INSTALL, Stage, said


def test_it_ends_with_the_line_that_the_router_needs(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    code = stage.up("--profile", "sim")
    out, err = said(capsys)
    assert code == 0, err
    assert out.splitlines()[-1] == f"LLMD_ENDPOINT=http://127.0.0.1:{stage.port}"
    assert "with a-model" in out
    assert len([line for line in out.splitlines() if line.startswith("SIMULATOR")]) == 2


def test_a_cluster_listens_on_loopback_only_and_carries_our_label(stage: Stage) -> None:
    assert stage.up() == 0
    (made,) = stage.ran("k3d cluster create")
    assert f"--image {K3S_IMAGE}" in made
    assert f"--port 127.0.0.1:{stage.port}:30800@server:0:direct" in made
    assert "--api-port 127.0.0.1:random" in made
    assert f"--runtime-label {CONTAINER_LABEL}={INSTALL}@server:0" in made
    (deployed,) = stage.ran("helm --kubeconfig")[1:2]
    assert "--set service.type=NodePort --set service.nodePort=30800" in deployed


def test_only_our_own_kubeconfig_is_used(stage: Stage) -> None:
    assert stage.up() == 0
    own = stage.home / "k3s" / "kubeconfig"
    assert own.stat().st_mode & 0o777 == 0o600
    assert (stage.home / "k3s").stat().st_mode & 0o077 == 0
    assert stage.users.read_text() == "the user's own"
    (made,) = stage.ran("k3d cluster create")
    assert "--kubeconfig-update-default=false" in made
    for line in stage.asked:
        if line.startswith(("kubectl", "helm")) and "version" not in line:
            assert f"--kubeconfig {own}" in line


def test_a_second_time_makes_nothing_anew_and_keeps_what_was_chosen(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.up("--profile", "cpu", "--set", "model.maxModelLen=2048") == 0
    stage.forget()
    assert stage.run("up", "--yes", "--set", "model.name=a/b") == 0
    out, _ = said(capsys)
    assert out.splitlines()[-1] == f"LLMD_ENDPOINT=http://127.0.0.1:{stage.port}"
    assert stage.ran("cluster create") == []
    assert stage.ran("create -f -") == []
    (deployed,) = stage.ran("upgrade --install")
    assert "values/cpu.yaml" in deployed
    assert deployed.split("--set ")[-2:] == [
        "model.maxModelLen=2048 ",
        "model.name=a/b --wait --timeout 30m",
    ]
    stage.forget()
    assert stage.run("up", "--yes", "--forget") == 0
    (deployed,) = stage.ran("upgrade --install")
    assert "model." not in deployed


def test_a_later_value_replaces_an_earlier_of_the_same_key(stage: Stage) -> None:
    assert stage.up("--set", "model.maxModelLen=2048", "--set", "model.maxModelLen=1024") == 0
    (deployed,) = stage.ran("upgrade --install")
    assert "model.maxModelLen=1024" in deployed
    assert "2048" not in deployed


def test_a_stopped_cluster_is_started(stage: Stage) -> None:
    assert stage.up() == 0
    assert stage.run("down", "--yes") == 0
    stage.forget()
    assert stage.run("up", "--yes") == 0
    assert stage.ran("cluster create") == []
    assert len(stage.ran("cluster start iir")) == 1


def test_a_dry_run_changes_nothing_and_says_all(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(stage.folder.rglob("*"))
    code = stage.run("up", "--dry-run", "--port", str(stage.port))
    out, err = said(capsys)
    assert code == 0, err
    for words in ("k3d cluster create iir", "namespace llm-d", "helm --kubeconfig", "--wait"):
        assert words in out
    assert "would ask: Write LLMD_ENDPOINT" in out
    assert out.splitlines()[-1] == f"LLMD_ENDPOINT=http://127.0.0.1:{stage.port}"
    assert sorted(stage.folder.rglob("*")) == before
    assert [path.name for path in (stage.home / "k3s").iterdir()] == ["lock"]
    assert not (stage.root / ".env").exists()
    reads = (
        "helm version",
        "k3d cluster list",
        "k3d kubeconfig get",
        "helm --kubeconfig",
        "kubectl",
    )
    assert all(line.startswith(reads) for line in stage.asked), stage.asked
    assert not any(" upgrade " in line or " test " in line for line in stage.asked)


def test_the_token_of_gated_models_is_in_no_command_line(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    (stage.root / ".env").write_text("HF_TOKEN=hf_secret\n")
    assert stage.up() == 0
    kept = json.loads((stage.folder / "applied.0").read_text())
    assert kept["stringData"] == {"HF_TOKEN": "hf_secret"}
    assert kept["metadata"]["labels"] == {OWNER_LABEL: INSTALL}
    assert "secrets.hfToken.existingSecret=llm-d-hf-token" in stage.ran("upgrade --install")[0]
    (apply,) = stage.ran(" apply ")
    assert "--server-side" in apply, "kubectl would write the token into an annotation"
    printed = "".join(said(capsys))
    assert "HF_TOKEN becomes the secret llm-d-hf-token" in printed
    assert "hf_secret" not in "".join(stage.asked) + printed
    assert stage.run("up", "--yes", "--profile", "sim") == 0  # which has no use for it
    assert not (stage.folder / "applied.1").exists()


def test_a_k3s_that_does_not_know_its_node_yet_is_waited_for(stage: Stage) -> None:
    seen = stage.folder / "seen"
    kubectl = (
        (stage.bin / "kubectl")
        .read_text()
        .replace(
            '*" get nodes -o name") echo node/box ;;',
            f'*" get nodes -o name") [ ! -f "{seen}" ] || echo node/box; touch "{seen}" ;;\n'
            f'*" wait --for=condition=Ready node"*) [ -f "{seen}" ] || exit 1 ;;',
        )
    )
    (stage.bin / "kubectl").write_text(kubectl)
    assert stage.up() == 0
    assert len(stage.ran("get nodes -o name")) == 2


def test_an_interrupted_installation_is_begun_anew(stage: Stage) -> None:
    assert stage.up() == 0
    for state, words in {"pending-install": "uninstall", "pending-upgrade": "rollback"}.items():
        stage.forget()
        (stage.folder / "release").write_text(state)
        assert stage.run("up", "--yes") == 0
        helm = [line.split()[3] for line in stage.ran("helm --kubeconfig")]
        assert helm.index(words) < helm.index("upgrade")


# -- what is not ours -----------------------------------------------------------------------------


def test_a_cluster_of_that_name_which_is_not_ours_is_left_alone(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    (stage.folder / "cluster").write_text("1")
    stage.keep("labels.json", {"app": "k3d", "k3d.cluster": "iir"})
    assert stage.up() == 1
    _, err = said(capsys)
    assert "K3S_ARGS='--cluster iir-2' make k3s-up" in err
    assert not any(word in line for line in stage.asked for word in ("create", "delete", "upgrade"))
    (stage.folder / "cluster").unlink()
    assert stage.up() == 0, "it stays refused"


@pytest.mark.parametrize("purge", [[], ["--purge"]])
def test_a_cluster_that_another_made_in_place_of_ours_is_left_alone(
    stage: Stage, purge: list[str]
) -> None:
    assert stage.up() == 0
    stage.keep("labels.json", {"app": "k3d", "k3d.cluster": "iir"})
    stage.forget()
    assert stage.run("down", "--yes", *purge) == 1
    assert not any(word in line for line in stage.asked for word in ("stop", "delete", "uninstall"))


def test_a_namespace_which_is_not_ours_is_left_alone(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.keep("namespace", {"metadata": {"name": "llm-d", "labels": {}}})
    assert stage.up() == 1
    _, err = said(capsys)
    assert "K3S_ARGS='--namespace llm-d-2' make k3s-up" in err
    assert "it was there before `make k3s-up`" in err
    assert f"label namespace llm-d {OWNER_LABEL}={INSTALL} --overwrite" in err
    assert not any(word in line for line in stage.asked for word in ("upgrade", "apply"))


def test_what_another_persons_make_k3s_up_made_is_left_alone(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    (stage.folder / "cluster").write_text("1")
    stage.keep("labels.json", {CONTAINER_LABEL: "feedfacefeedface"})
    assert stage.up() == 1
    assert "iir is there that another one's `make k3s-up` made" in said(capsys)[1]
    stage.keep("labels.json", {CONTAINER_LABEL: INSTALL})
    labels = {OWNER_LABEL: "feedfacefeedface"}
    stage.keep("namespace", {"metadata": {"name": "llm-d", "labels": labels}})
    stage.serve()
    assert stage.up() == 1
    assert "another `make k3s-up` made it" in said(capsys)[1]
    assert stage.run("doctor") == 1
    assert "llm-d is not ours" in said(capsys)[0]
    assert not any(word in line for line in stage.asked for word in ("upgrade", "apply", "create"))


def test_who_asks_again_after_a_refusal_is_still_the_same(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.keep("namespace", {"metadata": {"name": "llm-d", "labels": {}}})
    assert stage.up() == 1
    handed_over = {OWNER_LABEL: INSTALL}
    stage.keep("namespace", {"metadata": {"name": "llm-d", "labels": handed_over}})
    record = json.loads((stage.home / "k3s" / "choice.json").read_text())
    assert record["install"] == INSTALL
    assert stage.run("up", "--yes") == 0, said(capsys)[1]


# -- what is missing ------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["helm", "k3d", "kubectl"])
def test_a_missing_program_is_named_with_where_to_get_it(
    stage: Stage, capsys: pytest.CaptureFixture[str], program: str
) -> None:
    stage.without(program)
    stage.env["PATH"] = str(stage.bin)
    (stage.bin / "cat").symlink_to("/bin/cat")
    stage.machine = replace(stage.machine, search_path=str(stage.bin))
    assert stage.up() == 1
    _, err = said(capsys)
    assert f"{program} is needed" in err
    assert "https://" in err


def test_an_old_helm_is_refused(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.says("helm", "version*", "v3.9.4")
    assert stage.up() == 1
    assert "3.13 or newer" in said(capsys)[1]


def test_a_port_that_is_taken_is_named_with_one_that_is_free(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", stage.port)):
        assert stage.up() == 1
    _, err = said(capsys)
    assert f"Port {stage.port} is taken by " in err
    assert "make k3s-up" in err
    assert "--port " in err
    assert stage.ran("cluster create") == []


def test_what_was_chosen_cannot_be_changed_underway(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.up() == 0
    assert stage.run("up", "--yes", "--driver", "native") == 1
    assert "PURGE=1 make k3s-down" in said(capsys)[1]


def test_a_value_that_is_none_is_refused(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.up("--set", "model.maxModelLen") == 1
    assert "KEY=VALUE" in said(capsys)[1]
    assert stage.ran("cluster create") == []


def test_nodes_that_do_not_come_up_are_looked_at_where_they_are(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.says("kubectl", "*wait --for=condition=Ready node*", "timed out", code=1)
    assert stage.up("--cluster", "mine") == 1
    err = said(capsys)[1]
    assert "docker logs --tail 50 k3d-mine-server-0" in err
    assert "journalctl" not in err


def test_two_at_once_do_not_meet(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    (stage.home / "k3s").mkdir()
    with (stage.home / "k3s" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert stage.up() == 1
    assert "at work" in said(capsys)[1]
    assert stage.asked == []


# -- what fails -----------------------------------------------------------------------------------


def test_a_release_that_does_not_come_up_is_explained(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    error = "Error: context deadline exceeded"
    (stage.folder / "release").write_text("failed")
    stage.says("helm", "*upgrade --install*", error=error, code=1)
    pod = canned.unscheduled("0/1 nodes are available: 1 Insufficient memory.")
    stage.says("kubectl", "*get pods*", {"items": [pod]})
    assert stage.up() == 1
    out, err = said(capsys)
    assert error in out
    assert "next: K3S_ARGS='--set modelServer.resources.requests.memory=4Gi' make k3s-up" in out
    assert "did not come up" in err
    assert "LLMD_ENDPOINT" not in out


CLAIM = (
    'Upgrade "llm-d" failed: cannot patch "llm-d-model-cache" with kind PersistentVolumeClaim: '
    'PersistentVolumeClaim "llm-d-model-cache" is invalid: spec.resources.requests.storage: Forbidden: '
    "field can not be less than status.capacity"
)
GROWN = (
    'Upgrade "llm-d" failed: cannot patch "llm-d-model-cache" with kind PersistentVolumeClaim: '
    'persistentvolumeclaims "llm-d-model-cache" is forbidden: only dynamically provisioned pvc can be '
    "resized and the storageclass that provisions the pvc must support resize"
)


@pytest.mark.parametrize("story", [CLAIM, GROWN])
def test_a_volume_that_cannot_be_changed_is_explained_and_the_doctor_knows_it_too(
    stage: Stage, capsys: pytest.CaptureFixture[str], story: str
) -> None:
    assert stage.up() == 0
    said(capsys)
    info = {"status": "failed", "description": story}
    stage.says("helm", "*status llm-d*", {"name": "llm-d", "info": info})
    stage.says("helm", "*upgrade --install*", error=f"Error: {story}", code=1)
    assert stage.run("up", "--yes", "--set", "modelCache.size=10Gi") == 1
    for out in (said(capsys)[0], (stage.run("doctor"), said(capsys)[0])[1]):
        assert "(llm-d-model-cache) can't be changed" in out
        assert "uninstall llm-d --namespace llm-d --wait" in out
        assert "delete pvc llm-d-model-cache --namespace llm-d && make k3s-up" in out


def test_a_change_that_failed_without_a_trace_in_the_pods_is_told_by_the_doctor(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.up() == 0
    said(capsys)
    info = {"status": "failed", "description": 'Upgrade "llm-d" failed: something odd'}
    stage.says("helm", "*status llm-d*", {"name": "llm-d", "info": info})
    assert stage.run("doctor") == 1
    assert "something odd" in said(capsys)[0]


def test_values_that_the_chart_refuses_are_told_in_its_words(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    error = "Error: execution error: model.maxModelLen=131072 does not fit"
    stage.says("helm", "*upgrade --install*", error=error, code=1)
    assert stage.up() == 1
    out, err = said(capsys)
    assert error in err
    assert "next:" not in out
    assert stage.ran("get pods") == []


def test_a_model_that_fails_its_test_is_no_success(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.says("helm", "*test llm-d*", "chat answered 500", code=1)
    assert stage.up() == 1
    out, err = said(capsys)
    assert "chat answered 500" in err
    assert "make k3s-doctor" in err
    assert "LLMD_ENDPOINT=" not in out
