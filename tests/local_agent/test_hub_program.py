"""The program that pulls a repository, run as a process against a small hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from local_agent.weights.following import PROGRAM
from local_agent.weights.hub_cache import HubCache
from shared.kit.clock import monotonic
from tests.local_agent.repo_hub import COMMIT, LOADED, SIZE, TOKEN, WEIGHTS, FakeHub
from tests.shared.certificates import make_certificate, speak_tls

SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


class Pull:
    def __init__(self, home: Path, hub: FakeHub) -> None:
        self.folder = home / "hub" / "models--org--tiny"
        self._env = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "IIR_REPO": "org/tiny"}

    def start(self, task: str = "pull", **env: str) -> subprocess.Popen[bytes]:
        env = {"PATH": os.defpath, **self._env, "IIR_TASK": task, **env}
        text = PROGRAM.read_text()
        return subprocess.Popen([sys.executable, "-c", text], env=env, stdout=subprocess.PIPE)

    def __call__(self, task: str = "pull", **env: str) -> list[dict[str, Any]]:
        output, _ = self.start(task, **env).communicate(timeout=30)
        return [json.loads(line) for line in output.splitlines()]

    def files(self) -> dict[str, bytes]:
        snapshot = self.folder / "snapshots" / COMMIT
        return {path.name: path.read_bytes() for path in snapshot.iterdir()}


@pytest.fixture
def pull(tmp_path: Path, hub: FakeHub) -> Pull:
    return Pull(tmp_path, hub)


def test_what_an_engine_loads_is_pulled_and_laid_out_as_the_hub_s_library_does(pull: Pull) -> None:
    *lines, last = pull()
    assert last == {"result": {"size": SIZE, "is_checked": True}}
    assert pull.files() == LOADED
    assert (pull.folder / "refs" / "main").read_text() == COMMIT
    link = pull.folder / "snapshots" / COMMIT / "model.safetensors"
    assert os.readlink(link) == f"../../blobs/{SHA256}"  # noqa: PTH115 - as it is written
    phases = [line["phase"] for line in lines]
    assert list(dict.fromkeys(phases)) == ["checking", "downloading", "verifying"]
    assert [line for line in lines if line["phase"] == "downloading"][-1]["done"] == SIZE


def test_what_is_there_is_not_asked_for_again(pull: Pull, hub: FakeHub) -> None:
    pull()
    hub.asked.clear()
    *_, last = pull()
    assert last["result"]["size"] == SIZE
    assert [path for path, _ in hub.asked] == ["/api/models/org/tiny/revision/main?blobs=true"]


def test_an_index_says_which_weights_count(pull: Pull, hub: FakeHub) -> None:
    index = json.dumps({"weight_map": {"a": "part1.safetensors", "b": "part2.safetensors"}})
    hub.files = {
        "config.json": b"{}",
        "model.safetensors.index.json": index.encode(),
        "part1.safetensors": b"one",
        "part2.safetensors": b"two",
        "consolidated.safetensors": b"both",
        "pytorch_model.bin": b"old",
    }
    pull()
    wanted = set(hub.files) - {"consolidated.safetensors", "pytorch_model.bin"}
    assert set(pull.files()) == wanted


def test_a_cut_connection_is_resumed(pull: Pull, hub: FakeHub) -> None:
    hub.cut = 2_000_000
    *lines, last = pull()
    assert last["result"]["size"] == SIZE
    assert pull.files() == LOADED
    ranges = [asked for path, asked in hub.asked if path.endswith(".safetensors")]
    assert ranges == [None, "bytes=2000000-"]
    assert "waiting" in [line["phase"] for line in lines]


def test_one_that_was_killed_is_resumed(pull: Pull, hub: FakeHub) -> None:
    hub.hold = 1_500_000
    child = pull.start()
    part = pull.folder / "blobs" / f"{SHA256}.incomplete"
    deadline = monotonic() + 20
    while not (part.exists() and part.stat().st_size == 1_500_000):
        assert monotonic() < deadline
        time.sleep(0.01)
    child.kill()
    child.communicate()
    assert not (pull.folder / "snapshots").exists()
    hub.release()
    hub.asked.clear()
    *_, last = pull()
    assert last["result"]["size"] == SIZE
    (asked,) = (asked for path, asked in hub.asked if path.endswith(".safetensors"))
    assert asked == "bytes=1500000-"
    assert pull.files() == LOADED


def test_wrong_bytes_are_removed(pull: Pull, hub: FakeHub) -> None:
    hub.is_lying = True
    *_, last = pull()
    assert last["error"]["kind"] == "checksum"
    assert not (pull.folder / "refs").exists()


def test_bytes_that_another_program_left_are_checked_too(pull: Pull) -> None:
    blobs = pull.folder / "blobs"
    blobs.mkdir(parents=True)
    (blobs / SHA256).write_bytes(WEIGHTS[:-1] + b"!")
    *_, last = pull()
    assert last["error"] == {"kind": "checksum", "file": "model.safetensors"}
    assert pull()[-1]["result"]["is_checked"] is True


def test_a_gated_repository_needs_the_token(pull: Pull, hub: FakeHub) -> None:
    hub.is_gated = True
    assert pull()[-1] == {"error": {"kind": "denied", "status": 401}}
    assert "result" in pull(HF_TOKEN=TOKEN)[-1]
    assert TOKEN not in json.dumps(pull(HF_TOKEN=TOKEN))


def test_a_repository_that_is_not_there(pull: Pull, hub: FakeHub) -> None:
    assert pull(IIR_REPO="org/none")[-1]["error"]["kind"] == "not_found"
    hub.files = {"README.md": b""}
    assert pull()[-1]["error"]["kind"] == "no_weights"


@pytest.mark.slow
def test_a_hub_that_is_away_leaves_what_is_whole(pull: Pull) -> None:
    away = "http://127.0.0.1:9"
    assert pull(HF_ENDPOINT=away)[-1]["error"] == {
        "kind": "unreachable",
        "cause": "no connection",
        "is_resumable": False,
    }
    pull()
    assert pull(HF_ENDPOINT=away)[-1] == {"result": {"size": SIZE, "is_checked": False}}
    (pull.folder / "snapshots" / COMMIT / "model.safetensors").unlink()
    assert pull(HF_ENDPOINT=away)[-1]["error"]["kind"] == "unreachable"


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a//b.json"])
def test_a_name_that_climbs_is_refused(pull: Pull, hub: FakeHub, name: str) -> None:
    hub.files[name] = b"{}"
    assert pull()[-1]["error"]["kind"] == "senseless"


def test_removed_is_removed(pull: Pull) -> None:
    pull()
    assert pull("remove")[-1]["result"]["size"] >= SIZE
    assert not pull.folder.exists()
    assert pull("remove")[-1]["result"]["size"] == 0


def test_one_that_nobody_listens_to_ends(pull: Pull, hub: FakeHub) -> None:
    hub.hold = 1_500_000
    with pull.start() as child:
        assert child.stdout is not None
        try:
            assert any(b"downloading" in line for line in child.stdout), "it has ended"
            child.stdout.close()  # as when the agent was killed
            hub.release()
            assert child.wait(timeout=20) == 1
        finally:
            child.kill()


def test_a_reference_that_was_cut_short_is_no_revision(pull: Pull, tmp_path: Path) -> None:
    pull()
    (pull.folder / "refs" / "main").write_text("")
    (pull.folder / "snapshots" / "config.json").write_bytes(b"{}")
    (pull.folder / "snapshots" / "model.safetensors").write_bytes(WEIGHTS)
    assert HubCache(pull.folder.parent).find("org/tiny") is None
    assert pull(HF_ENDPOINT="http://127.0.0.1:9")[-1]["error"]["kind"] == "unreachable"
    assert pull()[-1]["result"]["size"] == SIZE
    assert [path.name for path in (pull.folder / "refs").iterdir()] == ["main"]
    assert HubCache(pull.folder.parent).find("org/tiny") is not None


def test_a_hub_whose_certificate_nobody_knows(pull: Pull, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    cert = make_certificate(tmp_path)
    speak_tls(server, cert)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        url = f"https://localhost:{server.server_address[1]}"
        *_, last = pull(HF_ENDPOINT=url)
    finally:
        server.shutdown()
        server.server_close()
    assert last["error"]["cause"] == "its certificate is not trusted"
