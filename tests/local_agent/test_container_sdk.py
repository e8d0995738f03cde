"""The Docker SDK against a small server that answers as an engine does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from threading import Event, Thread
from typing import Any, cast

import pytest

from local_agent.containers import sdk
from local_agent.containers.address import Address
from local_agent.containers.launcher import WORKER, off_loop
from local_agent.ports import ContainerError, ContainerSpec, Launch

# the SDK leaves a socket that it could not connect to the garbage collector, which says so
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SPEC = ContainerSpec(
    image="vllm/vllm-openai-cpu:v1",
    port=8000,
    volumes={"cache": "/cache"},
    memory_bytes=1024**3,
    cpus=1.5,
    capabilities=("SYS_NICE",),
    security=("no-new-privileges",),
)
LAUNCH = Launch(("org/m",), {"A": "1"}, container=SPEC)
RUNNING = {
    "Id": "c1",
    "Config": {"Labels": {"a": "b"}},
    "State": {"Running": True, "Pid": 7, "ExitCode": 0, "OOMKilled": False},
}
Answer = tuple[int, Any]


class Engine(ThreadingMixIn, UnixStreamServer):
    """Answers by method and last part of the path; remembers what it was asked."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, Handler)
        self.asked: list[tuple[str, str, Any]] = []
        self.answers: dict[str, Answer] = {"version": (200, {"ApiVersion": "1.44"})}

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that has left."""


class Handler(BaseHTTPRequestHandler):
    def handle_any(self) -> None:
        engine = cast("Engine", self.server)
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length) or b"null")
        path = self.path.partition("?")[0]
        engine.asked.append((self.command, path.partition("/containers")[2], body))
        name = path.rpartition("/")[2]
        status, answer = engine.answers.get(name, (404, {"message": "No such container"}))
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - the base class asks for these names

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def engine() -> Iterator[Engine]:
    # pytest's folders are too long for a socket
    with tempfile.TemporaryDirectory() as folder:
        server = Engine(f"{folder}/d.sock")
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def client(engine: Engine) -> Iterator[sdk.DockerClient]:
    gone = Address("unix:///nowhere/docker.sock", "Docker Desktop")
    here = Address(f"unix://{engine.server_address}", "Colima")
    client = sdk.connect([gone, here], 5)
    yield client
    client.close()


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="no container engine was found; start Docker") as none:
        sdk.connect([], 5)
    assert none.value.is_unreachable
    gone = Address(f"unix://{tmp_path}/x.sock", "OrbStack")
    with pytest.raises(ContainerError, match=r"no container engine answers \(tried: OrbStack\)"):
        sdk.connect([gone, gone], 5)


def test_a_container_is_made_as_the_spec_says(engine: Engine, client: sdk.DockerClient) -> None:
    engine.answers |= {"create": (201, {"Id": "c1"}), "start": (204, b"")}
    assert client.start("n", LAUNCH, env={"T": "x"}, labels={"l": "1"}, port=4321) == "c1"
    body = next(body for _, path, body in engine.asked if path == "/create")
    assert (body["Image"], body["Cmd"], body["Env"]) == (SPEC.image, ["org/m"], ["T=x"])
    host = body["HostConfig"]
    assert host["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "4321"}]}
    assert host["Binds"] == ["cache:/cache:rw"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (1024**3, 1_500_000_000, 4096)
    assert (host["CapAdd"], host["SecurityOpt"]) == (["SYS_NICE"], ["no-new-privileges"])
    assert not host.get("Privileged")
    assert not host.get("DeviceRequests")


def test_on_a_network_nothing_is_published(engine: Engine, tmp_path: Path) -> None:
    engine.answers |= {"create": (201, {"Id": "c1"}), "start": (204, b"")}
    address = Address(f"unix://{engine.server_address}", "Colima")
    client = sdk.connect([address], 5, "workers")
    client.start("n", LAUNCH, env={}, labels={}, port=4321)
    host = next(body for _, path, body in engine.asked if path == "/create")["HostConfig"]
    assert host["NetworkMode"] == "workers"
    assert not host.get("PortBindings")
    networks = {"workers": {"IPAddress": "172.30.0.9"}, "odd": {"IPAddress": None}}
    engine.answers["json"] = (200, {**RUNNING, "NetworkSettings": {"Networks": networks}})
    view = client.look("c1")
    assert view is not None
    assert view.addresses == {"workers": "172.30.0.9", "odd": ""}
    client.close()


def test_a_container_that_does_not_start_is_removed(
    engine: Engine, client: sdk.DockerClient
) -> None:
    engine.answers |= {
        "create": (201, {"Id": "c1"}),
        "start": (500, {"message": "Bind for 127.0.0.1:4321 failed: port is already allocated"}),
        "c1": (204, b""),
    }
    with pytest.raises(ContainerError, match="port 4321 was taken by another program"):
        client.start("n", LAUNCH, env={}, labels={}, port=4321)
    assert engine.asked[-1][:2] == ("DELETE", "/c1")


def test_a_missing_image_is_named(engine: Engine, client: sdk.DockerClient) -> None:
    engine.answers["create"] = (404, {"message": "No such image: vllm/vllm-openai-cpu:v1"})
    with pytest.raises(
        ContainerError, match="v1 is not on this host; pull it: iir-agent pull m"
    ) as no:
        client.start("n", LAUNCH, env={}, labels={WORKER: "m"}, port=4321)
    assert no.value.is_outside
    assert not no.value.is_unreachable


def test_containers_are_found_and_looked_at(engine: Engine, client: sdk.DockerClient) -> None:
    engine.answers |= {"json": (200, RUNNING)}
    view = client.look("c1")
    assert view is not None
    assert (view.id, dict(view.labels), view.is_running, view.pid) == ("c1", {"a": "b"}, True, 7)
    del engine.answers["json"]
    assert client.look("c1") is None
    engine.answers["json"] = (200, [])
    assert client.find({"a": "b"}) == []


def test_a_container_is_stopped_and_removed(engine: Engine, client: sdk.DockerClient) -> None:
    engine.answers |= {"stop": (204, b""), "c1": (204, b"")}
    client.stop("c1", 2.5)
    assert [asked[:2] for asked in engine.asked[-2:]] == [("POST", "/c1/stop"), ("DELETE", "/c1")]
    client.stop("gone", 0)  # fine


def test_a_container_that_somebody_else_removes_is_left_to_them(
    engine: Engine, client: sdk.DockerClient
) -> None:
    said = "removal of container c1 is already in progress"
    engine.answers["c1"] = (409, {"message": said})
    client.stop("c1", 0)
    engine.answers["c1"] = (409, {"message": "it is paused"})
    with pytest.raises(ContainerError, match="refused"):
        client.stop("c1", 0)


def test_what_it_refuses_and_that_it_is_gone(engine: Engine, client: sdk.DockerClient) -> None:
    engine.answers["json"] = (500, {"message": "/var/lib/docker is broken"})
    with pytest.raises(ContainerError, match=r"refused \(500\)$") as refused:
        client.look("c1")
    assert not refused.value.is_unreachable
    engine.shutdown()
    engine.server_close()
    with pytest.raises(ContainerError, match=r"does not answer any more \(Colima\)") as gone:
        client.look("c1")
    assert gone.value.is_unreachable


def test_the_output_is_copied(engine: Engine, client: sdk.DockerClient) -> None:
    frame = b"\x01\x00\x00\x00\x00\x00\x00\x03up\n"
    engine.answers |= {"json": (200, RUNNING | {"Config": {"Tty": False}}), "logs": (200, frame)}
    written: list[bytes] = []
    client.follow("c1", 5, written.append)
    assert written == [b"up\n"]
    del engine.answers["logs"]
    client.follow("c1", 5, written.append)
    assert written == [b"up\n"]


def test_a_program_runs_in_place_of_the_image_s_own(
    engine: Engine, client: sdk.DockerClient
) -> None:
    engine.answers |= {"create": (201, {"Id": "c1"}), "start": (204, b"")}
    assert client.run_program("n", SPEC, "print()", env={"A": "1"}, labels={"l": "1"}) == "c1"
    body = next(body for _, path, body in engine.asked if path == "/create")
    assert body["Entrypoint"] == ["python3", "-c", "print()"]
    assert not body["Cmd"]
    assert not body.get("ExposedPorts")
    host = body["HostConfig"]
    assert (host["Binds"], host["SecurityOpt"]) == (["cache:/cache:rw"], ["no-new-privileges"])
    assert not host.get("CapAdd")
    assert not host.get("PortBindings")


def test_an_image_without_python_is_named(engine: Engine, client: sdk.DockerClient) -> None:
    said = 'exec: "python3": executable file not found in $PATH: unknown'
    engine.answers |= {
        "create": (201, {"Id": "c1"}),
        "start": (400, {"message": said}),
        "c1": (204, b""),
    }
    with pytest.raises(ContainerError, match="has no python3, which pulls the weights"):
        client.run_program("n", SPEC, "print()", env={}, labels={})
    assert ("DELETE", "/c1", None) in engine.asked


def test_the_messages_of_a_pull_are_handed_on(engine: Engine, client: sdk.DockerClient) -> None:
    assert not client.has_image("x:v1")
    seen: list[Any] = []
    engine.answers["create"] = (200, {"status": "Downloading", "id": "a"})
    client.pull_image("x:v1", seen.append)
    assert seen == [{"status": "Downloading", "id": "a"}]
    engine.answers["create"] = (200, {"error": "manifest unknown"})
    with pytest.raises(ContainerError, match="the registry does not have it"):
        client.pull_image("x:v1", seen.append)
    engine.answers["create"] = (500, {"message": "dial tcp: connection refused"})
    with pytest.raises(ContainerError, match="its registry can't be reached"):
        client.pull_image("x:v1", seen.append)


async def test_a_call_that_hangs_is_left_alone() -> None:
    release = Event()
    try:
        with pytest.raises(ContainerError, match="did not answer within") as late:
            await off_loop(lambda: release.wait(10), 0.01)
        assert late.value.is_unreachable
    finally:
        release.set()
