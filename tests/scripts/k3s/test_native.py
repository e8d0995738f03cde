"""`make k3s-up` on a machine with a GPU: k3s itself, with a checked installer and consent."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from scripts.k3s.pins import DEVICE_PLUGIN_IMAGE, INSTALLER, K3S_VERSION, OWNER_LABEL
from tests.scripts.k3s.stage import Stage


@pytest.fixture
def gpu_box(stage: Stage) -> Stage:
    stage.with_gpu()
    stage.serve()
    return stage


def installed(stage: Stage) -> dict[str, str]:
    """Return the environment that the installer saw; {} if it did not run."""
    text = (stage.folder / "installer.env").read_text()
    return dict(line.split("=", 1) for line in text.splitlines())


def test_a_gpu_leads_to_k3s_itself_and_to_the_profile_for_gpus(
    gpu_box: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_box.run("up", "--yes") == 0
    out = capsys.readouterr().out
    assert "driver native, profile gpu-small" in out
    assert out.splitlines()[-1] == f"LLMD_ENDPOINT=http://127.0.0.1:{gpu_box.port}"
    (deployed,) = gpu_box.ran("upgrade --install")
    assert "values/gpu-small.yaml" in deployed
    assert "--set modelServer.gpu.runtimeClassName=nvidia" in deployed
    assert "--set capacityCheck.gpuMemoryGiB=22.4" in deployed
    assert gpu_box.ran("k3d ") == []


def test_the_installer_gets_the_pinned_version_and_no_setting_of_ours(gpu_box: Stage) -> None:
    gpu_box.env |= {"K3S_URL": "https://elsewhere:6443", "K3S_ARGS": "--yes"}
    assert gpu_box.run("up", "--yes") == 0
    seen = installed(gpu_box)
    assert seen.pop("INSTALL_K3S_VERSION") == K3S_VERSION
    options = seen.pop("INSTALL_K3S_EXEC").split()
    assert options[0] == "server"
    assert {"--disable=traefik", "--disable=servicelb", "--write-kubeconfig-mode=600"} <= {*options}
    assert seen == {}


def test_without_a_yes_nothing_is_installed(
    gpu_box: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_box.run("up") == 1
    err = capsys.readouterr().err
    assert "YES=1 make k3s-up" in err
    assert "install-k3s-" in err
    assert installed(gpu_box) == {}
    assert not (gpu_box.folder / "k3s.service").exists()


def test_who_says_no_can_take_another_way(gpu_box: Stage) -> None:
    assert gpu_box.run("up") == 1
    gpu_box.end()
    assert gpu_box.up("--driver", "k3d") == 0
    assert len(gpu_box.ran("cluster create")) == 1


def test_an_installer_that_is_not_the_pinned_one_is_not_run(
    gpu_box: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_box.installer += "# one more line\n"
    assert gpu_box.run("up", "--yes") == 1
    err = capsys.readouterr().err
    assert "is not what was pinned" in err
    assert "K3S_ARGS='--driver k3d' make k3s-up" in err
    assert installed(gpu_box) == {}
    assert not list((gpu_box.home / "k3s").glob("install-*"))


def test_an_installer_on_disk_that_was_changed_is_fetched_anew(gpu_box: Stage) -> None:
    assert gpu_box.run("up") == 1
    (script,) = (gpu_box.home / "k3s").glob("install-k3s-*.sh")
    script.write_text("exit 0\n")
    assert gpu_box.run("up", "--yes") == 0
    assert installed(gpu_box)["INSTALL_K3S_VERSION"] == K3S_VERSION


def test_the_pin_is_one_of_a_release() -> None:
    assert INSTALLER.url == (
        f"https://raw.githubusercontent.com/k3s-io/k3s/{K3S_VERSION.replace('+', '%2B')}/install.sh"
    )
    assert len(bytes.fromhex(INSTALLER.sha256)) == 32


def test_a_dry_run_downloads_and_installs_nothing(
    gpu_box: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_box.run("up", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "would download: https://" in out
    assert f"would run: INSTALL_K3S_VERSION={K3S_VERSION}" in out
    assert "would ask: Install k3s" in out
    assert installed(gpu_box) == {}
    assert [path.name for path in (gpu_box.home / "k3s").iterdir()] == ["lock"]


def test_a_second_time_installs_nothing(gpu_box: Stage) -> None:
    assert gpu_box.run("up", "--yes") == 0
    (gpu_box.folder / "installer.env").write_text("")
    assert gpu_box.run("up") == 0  # nothing is asked either
    assert installed(gpu_box) == {}


def test_the_device_plugin_is_installed_where_no_node_offers_a_gpu(gpu_box: Stage) -> None:
    assert gpu_box.run("up", "--yes") == 0
    plugin = json.loads((gpu_box.folder / "applied.0").read_text())
    pod = plugin["spec"]["template"]["spec"]
    assert pod["runtimeClassName"] == "nvidia"
    assert [one["image"] for one in pod["containers"]] == [DEVICE_PLUGIN_IMAGE]
    gpu_box.forget()
    assert gpu_box.run("up", "--yes") == 0
    assert gpu_box.ran(" apply ") == []


@pytest.mark.parametrize("gone", ["runtime", "class"])
def test_without_nvidias_toolkit_it_says_what_to_install(
    gpu_box: Stage, capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    if gone == "runtime":
        gpu_box.without("nvidia-container-runtime")
    else:
        gpu_box.says("kubectl", "*get runtimeclass*", error="not found", code=1)
    assert gpu_box.run("up", "--yes") == 1
    assert "container toolkit" in capsys.readouterr().err
    assert (installed(gpu_box) == {}) == (gone == "runtime")
    assert gpu_box.ran("upgrade") == []


# -- a k3s that is not ours -----------------------------------------------------------------------


@pytest.fixture(params=["", f" --node-label={OWNER_LABEL}=feedfacefeedface"])
def with_a_k3s(gpu_box: Stage, request: pytest.FixtureRequest) -> Stage:
    """Return a machine with a k3s that somebody installed, by hand or by a `make k3s-up` of their own."""
    unit = f"ExecStart=/usr/local/bin/k3s server{request.param}\n"
    (gpu_box.folder / "k3s.service").write_text(unit)
    (gpu_box.folder / "k3s.yaml").write_text("kind: Config # another's\n")
    gpu_box.keep("nodes.json", json.loads((gpu_box.folder / "nodes-gpu.json").read_text()))
    return gpu_box


def test_a_k3s_that_is_there_is_used_and_not_changed(with_a_k3s: Stage) -> None:
    assert with_a_k3s.run("up", "--yes") == 0
    assert installed(with_a_k3s) == {}
    assert with_a_k3s.ran(" apply ") == []  # nor is anything put into kube-system
    assert "another's" in (with_a_k3s.home / "k3s" / "kubeconfig").read_text()
    assert with_a_k3s.run("up") == 0  # it was agreed to


def test_a_k3s_that_is_there_is_not_used_without_a_yes(
    with_a_k3s: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert with_a_k3s.run("up") == 1
    assert "YES=1 make k3s-up" in capsys.readouterr().err
    assert not (with_a_k3s.home / "k3s" / "kubeconfig").exists()


def test_a_node_of_another_cluster_gets_no_k3s(
    gpu_box: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_box.machine.native.marker.mkdir()  # k3s's agent has its data there, too
    assert gpu_box.run("up", "--yes") == 1
    assert "--driver existing --kubeconfig FILE" in capsys.readouterr().err
    assert installed(gpu_box) == {}


def test_purge_leaves_a_k3s_that_is_not_ours(with_a_k3s: Stage) -> None:
    assert with_a_k3s.run("up", "--yes") == 0
    assert with_a_k3s.run("down", "--yes", "--purge") == 0
    assert (with_a_k3s.folder / "k3s.service").exists()
    assert len(with_a_k3s.ran("delete namespace llm-d")) == 1


def test_purge_removes_our_own_k3s_by_its_own_script_and_with_a_yes(
    gpu_box: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_box.run("up", "--yes") == 0
    assert gpu_box.run("down", "--purge") == 1
    assert "YES=1 PURGE=1 make k3s-down" in capsys.readouterr().err
    assert (gpu_box.folder / "k3s.service").exists()
    assert gpu_box.run("down", "--yes", "--purge") == 0
    assert not (gpu_box.folder / "k3s.service").exists()


def test_down_frees_the_gpu_and_leaves_k3s(
    gpu_box: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_box.run("up", "--yes") == 0
    assert gpu_box.run("down", "--yes") == 0
    assert not (gpu_box.folder / "release").exists()
    assert (gpu_box.folder / "k3s.service").exists()
    assert "sudo systemctl stop k3s" in capsys.readouterr().out


def test_a_k3s_installed_in_place_of_ours_is_not_removed(gpu_box: Stage) -> None:
    assert gpu_box.run("up", "--yes") == 0
    (gpu_box.folder / "k3s.service").write_text("ExecStart=/usr/local/bin/k3s server\n")
    assert gpu_box.run("down", "--yes", "--purge") == 0
    assert (gpu_box.folder / "k3s.service").exists()


def test_k3s_is_for_linux(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.machine = replace(stage.machine, system="Darwin")
    assert stage.run("up", "--yes", "--driver", "native") == 1
    assert "K3S_ARGS='--driver k3d' make k3s-up" in capsys.readouterr().err
