"""Where a container engine answers on this machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from local_agent.containers.address import address_problem, candidates


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def context(home: Path, name: str, host: str) -> None:
    folder = home / ".docker/contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"Endpoints": {"docker": {"Host": host}}}))


@pytest.mark.parametrize(
    ("socket", "source"),
    [
        ("root/var/run/docker.sock", "the standard socket"),
        ("home/.docker/run/docker.sock", "Docker Desktop"),
        ("home/.colima/default/docker.sock", "Colima"),
        ("home/.orbstack/run/docker.sock", "OrbStack"),
        ("user/docker.sock", "Docker without root"),
        ("user/podman/podman.sock", "Podman"),
        ("home/.local/share/containers/podman/machine/podman.sock", "Podman"),
    ],
)
def test_a_usual_socket_is_found(tmp_path: Path, socket: str, source: str) -> None:
    path = touch(tmp_path / socket)
    env = {"XDG_RUNTIME_DIR": str(tmp_path / "user")}
    (found,) = candidates(env, tmp_path / "home", root=tmp_path / "root")
    assert (found.url, found.source) == (f"unix://{path}", source)
    assert address_problem(env, tmp_path / "home") is None


def test_without_a_socket_nothing_is_found(tmp_path: Path) -> None:
    assert candidates({}, tmp_path, root=tmp_path) == []


def test_what_was_set_is_the_only_place(tmp_path: Path) -> None:
    touch(tmp_path / "var/run/docker.sock")
    context(tmp_path, "colima", "unix:///somewhere/colima.sock")
    (tmp_path / ".docker/config.json").write_text('{"currentContext": "colima"}')
    (found,) = candidates({}, tmp_path, root=tmp_path)
    assert (found.url, found.source) == (
        "unix:///somewhere/colima.sock",
        "the Docker context colima",
    )
    (found,) = candidates({"DOCKER_HOST": "unix:///x.sock"}, tmp_path, root=tmp_path)
    assert (found.url, found.source) == ("unix:///x.sock", "DOCKER_HOST")
    found, *_ = candidates({"DOCKER_CONTEXT": "default"}, tmp_path, root=tmp_path)
    assert found.source == "the standard socket"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"currentContext": 3}'])
def test_a_broken_docker_configuration_is_none(tmp_path: Path, text: str) -> None:
    touch(tmp_path / ".docker/config.json").write_text(text)
    touch(tmp_path / "var/run/docker.sock")
    (found,) = candidates({}, tmp_path, root=tmp_path)
    assert found.source == "the standard socket"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (
            {"DOCKER_HOST": "ssh://me@far"},
            "DOCKER_HOST names a container engine that is not on this",
        ),
        ({"DOCKER_HOST": "tcp://10.0.0.1:2375"}, "not on this machine"),
        ({"DOCKER_CONTEXT": "gone"}, "the Docker context gone does not exist"),
        ({"DOCKER_HOST": "tcp://127.0.0.1:2375"}, None),
        ({"DOCKER_HOST": "unix:///x"}, None),
        ({}, None),
    ],
)
def test_an_engine_on_another_machine_is_refused(
    tmp_path: Path, env: dict[str, str], words: str | None
) -> None:
    problem = address_problem(env, tmp_path)
    assert problem is None if words is None else words in (problem or "")
