"""`make k3s-up` in a cluster that the user has: one namespace of it, and a forwarded port."""

from __future__ import annotations

import http.client
import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from scripts.k3s import forward
from tests.scripts.k3s.stage import Stage, nodes, said, view


def up(stage: Stage, *more: str) -> int:
    asked = ("--kubeconfig", str(stage.users), "--context", "mine")
    return stage.run("up", "--port", str(stage.port), *asked, *more)


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def end_forwarding_program(stage: Stage) -> None:
    """End kubectl as a pod that goes away does; what supervises it stays."""
    record = json.loads((stage.home / "k3s" / "forward.json").read_text())
    for program in psutil.Process(record["pid"]).children():
        program.kill()


def until(is_true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.slow
def test_a_kubeconfig_leads_into_its_cluster_by_a_forwarded_port_until_down(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up(stage, "--yes") == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "driver existing, profile cpu" in out
    assert out.splitlines()[-1] == f"LLMD_ENDPOINT=http://127.0.0.1:{stage.port}"
    (forwarded,) = stage.ran("port-forward")
    assert f"--address 127.0.0.1 service/llm-d {stage.port}:http" in forwarded
    assert answers(stage.port)
    assert stage.run("status") == 0
    assert f"port {stage.port}: forwarded" in capsys.readouterr().out

    first = stage.ran("port-forward")
    end_forwarding_program(stage)
    until(lambda: stage.ran("port-forward") != first and answers(stage.port))

    stage.forget()
    assert stage.run("up", "--yes") == 0  # the copy of the kubeconfig is used
    assert stage.ran("config view") == []
    assert answers(stage.port)

    assert stage.run("down", "--yes") == 0
    assert not forward.is_running(stage.home / "k3s")
    assert not answers(stage.port)
    assert (stage.folder / "namespace").exists()
    assert not (stage.folder / "release").exists()


def test_the_users_kubeconfig_is_copied_and_not_changed(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up(stage, "--dry-run") == 0
    (viewed,) = stage.ran("config view")
    assert f"--kubeconfig {stage.users} " in viewed
    assert viewed.endswith("--raw --minify --flatten -o json --context mine")
    assert (
        "would ask: Install llm-d into the namespace llm-d of the cluster https://k8s.example:6443"
        in (capsys.readouterr().out)
    )
    assert stage.users.read_text() == "the user's own"
    assert not (stage.home / "k3s" / "kubeconfig").exists()


def test_without_a_yes_nothing_is_installed(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up(stage) == 1
    assert "YES=1 K3S_ARGS=" in capsys.readouterr().err
    assert not (stage.home / "k3s" / "kubeconfig").exists()
    assert not any(word in line for line in stage.asked for word in ("create", "upgrade"))


@pytest.mark.parametrize("gone", ["file", "context", "name"])
def test_a_cluster_that_is_not_found_is_asked_for(
    stage: Stage, capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    if gone == "file":
        stage.users.unlink()
    stage.says("kubectl", "*config view*", error='error: cannot locate context "mine"', code=1)
    code = stage.run("up", "--driver", "existing") if gone == "name" else up(stage, "--yes")
    assert code == 1
    err = capsys.readouterr().err
    assert "--kubeconfig" in err
    assert ("get-contexts" in err) == (gone == "context")


def test_the_clusters_gpus_choose_the_profile_and_are_not_prepared_by_us(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.keep("nodes.json", nodes(gpus="2"))
    assert up(stage, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "profile gpu-small" in out
    assert "device plugin" not in out


REFUSED = """E1126 04:16:02.818247 3919 memcache.go:265] "Unhandled Error" err="couldn't get current server"
The connection to the server k8s.example:6443 was refused - did you specify the right host or port?
"""


def test_a_cluster_that_does_not_answer_is_told_in_one_line_and_forgotten(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.says("kubectl", "*get namespace*", error=REFUSED, code=1)
    assert up(stage, "--yes") == 1
    err = capsys.readouterr().err
    assert "does not answer: The connection to the server k8s.example:6443 was refused" in err
    assert "memcache" not in err
    shutil.rmtree(stage.folder / "says")
    assert stage.run("up", "--yes", "--driver", "k3d", "--port", str(stage.port)) == 0


def test_a_cluster_that_is_gone_for_good_can_be_forgotten(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up(stage, "--yes") == 0
    stage.says("kubectl", "*get namespace*", error=REFUSED, code=1)
    assert stage.run("down", "--yes", "--purge") == 1
    assert f"rm -r {stage.home}/k3s" in capsys.readouterr().err


def test_llm_d_in_one_cluster_is_not_lost_sight_of_for_another(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up(stage, "--yes") == 0
    stage.forget()
    other = stage.users.with_name("other")
    other.touch()
    stage.says("kubectl", f"*{other} config view*", view("https://other.example:6443"))
    assert stage.run("up", "--yes", "--kubeconfig", str(other)) == 1
    err = capsys.readouterr().err
    assert "https://k8s.example:6443, not in https://other.example:6443" in err
    assert "PURGE=1 make k3s-down" in err
    assert not any(word in line for line in stage.asked for word in ("create", "upgrade"))


def test_another_namespace_can_be_named_if_the_first_was_taken(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.keep("namespace", {"metadata": {"name": "llm-d", "labels": {}}})
    (stage.folder / "release").write_text("deployed")  # another's
    assert up(stage, "--yes") == 1
    said(capsys)
    assert stage.run("status") == 1
    out = said(capsys)[0]
    assert "driver existing, nothing installed yet" in out
    assert "deployed" not in out
    (stage.folder / "namespace").unlink()
    assert up(stage, "--yes", "--namespace", "llm-d-2") == 0
    assert "--namespace llm-d-2" in stage.ran("upgrade --install")[0]
    assert stage.run("up", "--yes", "--namespace", "llm-d-3") == 1


def test_purge_takes_the_namespace_and_nothing_else(stage: Stage) -> None:
    assert up(stage, "--yes") == 0
    stage.forget()
    assert stage.run("down", "--yes", "--purge") == 0
    deleted = [line.split(" delete ")[1] for line in stage.ran(" delete ")]
    assert deleted == ["namespace llm-d --timeout=180s"]
    assert stage.users.read_text() == "the user's own"
    assert not (stage.home / "k3s" / "kubeconfig").exists()


def test_purge_without_the_kubeconfig_says_so_and_forgets_nothing(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up(stage, "--yes") == 0
    (stage.home / "k3s" / "kubeconfig").unlink()
    assert stage.run("down", "--yes", "--purge") == 1
    assert "make k3s-up, then this again" in capsys.readouterr().err
    assert (stage.home / "k3s" / "choice.json").is_file()


def test_purge_asks(stage: Stage, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert up(stage, "--yes") == 0
    assert stage.run("down", "--purge") == 1
    assert "YES=1 PURGE=1 make k3s-down" in capsys.readouterr().err
    assert stage.ran(" delete ") == []


def test_a_token_goes_into_a_cluster_of_others_with_consent_only(stage: Stage) -> None:
    stage.env["HF_TOKEN"] = "hf_secret"
    assert up(stage, "--yes") == 0
    assert (stage.folder / "applied.0").exists()
    (stage.folder / "applied.0").unlink()
    assert stage.run("up") == 0
    assert not (stage.folder / "applied.0").exists()


def test_a_namespace_that_is_no_longer_ours_is_left_alone(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert up(stage, "--yes") == 0
    stage.keep("namespace", {"metadata": {"name": "llm-d", "labels": {"team": "x"}}})
    for purge in ([], ["--purge"]):
        assert stage.run("down", "--yes", *purge) == 1
        assert "does not carry our label" in capsys.readouterr().err
    assert stage.ran("uninstall") == []
    assert stage.ran(" delete ") == []


class Terminal(io.StringIO):
    """A terminal at which somebody typed these lines, then Ctrl-D."""

    def isatty(self) -> bool:
        return True


def test_ctrl_d_at_a_question_is_a_no(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    assert up(stage) == 1
    out, err = said(capsys)
    assert "Nothing was changed: it needs your yes." in err
    assert out.endswith("[y/N] \n")
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert up(stage) == 0
    assert (
        "Nothing was written. A router takes it at once, or when it starts, after: echo 'LLMD_ENDPOINT="
        in said(capsys)[0]
    )
    assert not (stage.root / ".env").exists()
