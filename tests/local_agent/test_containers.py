"""Containers without an engine: what fails, whose containers are touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event

import anyio
import pytest

from local_agent.containers import ContainerLauncher, EitherLauncher
from local_agent.containers.causes import DISK_FULL, exit_cause, refusal
from local_agent.containers.launcher import AGENT, CONFIG, LAUNCH, PORT, PULL, WORKER
from local_agent.ports import ContainerError, ContainerSpec, ContainerView, Launch, Left, Wanted
from tests.local_agent.conftest import FakeLauncher

SPEC = ContainerSpec(image="vllm/vllm-openai-cpu:v1", port=8000, memory_bytes=2 * 1024**3)
LAUNCH_SPEC = Launch(("org/m",), {"A": "1"}, container=SPEC)


# -- causes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "gpus", "reason"),
    [
        ("No such image: x", False, "cpu:v1 is not on this host; pull it: iir-agent pull org/m"),
        (
            "driver failed: Bind for 127.0.0.1:7 failed: port is already allocated",
            False,
            "port 7 was",
        ),
        ("listen tcp 127.0.0.1:7: bind: address already in use", False, "port 7 was taken"),
        ("write /var/lib/docker/x: no space left on device", False, DISK_FULL),
        ('could not select device driver "" with capabilities: [[gpu]]', True, "offers no GPU"),
        ("mount /home/me/secret/dir failed", False, "refused (500): mount dir failed"),
    ],
)
def test_a_refusal_is_named(text: str, gpus: bool, reason: str) -> None:
    assert reason in refusal(500, text, replace(SPEC, has_gpus=gpus), 7, "org/m")


@pytest.mark.parametrize(
    ("view", "tail", "cause"),
    [
        (None, [], "the container was removed by somebody else"),
        ({"exit_code": 137, "is_out_of_memory": True}, [], "its limit of 2 GiB; raise memory_gib"),
        ({"exit_code": 137}, [], "the engine was ended by SIGKILL"),
        ({"exit_code": 1}, ["OSError: No space left on device"], DISK_FULL),
        ({"exit_code": 3}, ["ValueError: error x"], "exited with code 3: ValueError: error x"),
        ({"exit_code": 200}, [], "exited with code 200"),
    ],
)
def test_an_end_is_named(view: dict[str, object] | None, tail: list[str], cause: str) -> None:
    seen = None if view is None else ContainerView(id="x", labels={}, is_running=False, **view)  # type: ignore[arg-type] # fields of several types
    assert cause in exit_cause(seen, SPEC, tail)


# -- the launcher --------------------------------------------------------------------------------


class FakeClient:
    """A container engine in memory."""

    def __init__(self) -> None:
        self.all: dict[str, ContainerView] = {}
        self.started: list[tuple[str, dict[str, str], int]] = []
        self.stopped: list[tuple[str, float]] = []
        self.error: ContainerError | None = None
        self.refused: ContainerError | None = None
        self.addresses = {"workers": "172.30.0.9"}
        self.end = Event()

    def find(self, labels: Mapping[str, str]) -> list[ContainerView]:
        self._fail()
        return [v for v in self.all.values() if labels.items() <= dict(v.labels).items()]

    def look(self, container: str) -> ContainerView | None:
        self._fail()
        return self.all.get(container)

    def start(
        self,
        name: str,
        launch: Launch,
        *,
        env: Mapping[str, str],
        labels: Mapping[str, str],
        port: int,
    ) -> str:
        self._fail()
        if self.refused is not None:
            raise self.refused
        self.started.append((name, dict(env), port))
        made = f"c{len(self.started)}"
        self.all[made] = ContainerView(
            id=made,
            labels=dict(labels),
            is_running=True,
            pid=77,
            addresses=self.addresses,
        )
        return made

    def stop(self, container: str, grace_s: float) -> None:
        self._fail()
        self.stopped.append((container, grace_s))
        self.all.pop(container, None)
        self.end.set()

    def follow(self, container: str, lines: int, write: Callable[[bytes], object]) -> None:
        write(b"up\n")
        self.end.wait(10)
        write(b"ValueError: bad\n")

    def run_program(self, *arguments: object, **fields: object) -> str:
        raise AssertionError("launchers run no programs")

    def has_image(self, image: str) -> bool:
        raise AssertionError("the start finds out")

    def pull_image(self, image: str, report: object) -> None:
        raise AssertionError("launchers pull nothing")

    def close(self) -> None:
        raise AssertionError("it is kept")

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    def exits(self, container: str, **fields: object) -> None:
        self.all[container] = replace(self.all[container], is_running=False, **fields)  # type: ignore[arg-type] # fields of several types
        self.end.set()

    def add(self, container: str, labels: Mapping[str, str], *, is_running: bool = True) -> None:
        self.all[container] = ContainerView(id=container, labels=labels, is_running=is_running)


class Bench:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.client = FakeClient()
        self.connects = 0
        self.pulled_elsewhere: set[str] = set()

    def launcher(self, agent_id: str = "agent-id-1", network: str = "") -> ContainerLauncher:
        return ContainerLauncher(
            agent_id=agent_id,
            network=network,
            connect=self.connect,
            run_dir=self.home / "run",
            log_dir=self.home / "logs",
            secrets={"HF_TOKEN": "s3cret"},
            is_pulled_elsewhere=lambda model: model in self.pulled_elsewhere,
            poll_s=0.005,
        )

    def connect(self) -> FakeClient:
        self.connects += 1
        if self.client.error is not None:
            raise self.client.error
        return self.client

    def foreign(self) -> None:
        self.client.add("plain", {})
        self.client.add("other", {AGENT: "agent-id-2", WORKER: "m", CONFIG: "h", PORT: "5"})


@pytest.fixture
def bench(tmp_path: Path) -> Iterable[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.client.end.set()


async def test_a_container_is_started_watched_and_removed(bench: Bench) -> None:
    process = await bench.launcher().launch("org/m", LAUNCH_SPEC, config_hash="h", port=7)
    assert (process.port, process.pid, process.exit_cause) == (7, 77, None)
    ((name, env, port),) = bench.client.started
    assert name.startswith("iir-agent-id-worker-org_m-")
    assert env == {"A": "1", "HF_TOKEN": "s3cret"}
    assert port == 7
    labels = bench.client.all["c1"].labels
    assert (labels[AGENT], labels[WORKER], labels[CONFIG]) == ("agent-id-1", "org/m", "h")
    assert "s3cret" not in str(labels)
    bench.client.exits("c1", exit_code=3)
    with anyio.fail_after(10):
        assert await process.wait() == 3
    assert process.exit_cause == "the engine exited with code 3: ValueError: bad"
    assert process.log_tail(5) == ["up", "ValueError: bad"]
    await process.stop(2.5)
    assert bench.client.stopped == [("c1", 2.5)]


async def test_a_container_that_is_removed_is_noticed(bench: Bench) -> None:
    process = await bench.launcher().launch("m", LAUNCH_SPEC, config_hash="h", port=7)
    bench.client.stop("c1", 0)
    with anyio.fail_after(10):
        assert await process.wait() == -1
    assert process.exit_cause == "the container was removed by somebody else"


async def test_an_engine_that_stops_and_comes_back(bench: Bench) -> None:
    launcher = bench.launcher()
    process = await launcher.launch("m", LAUNCH_SPEC, config_hash="h", port=7)
    bench.client.error = ContainerError("it does not answer", is_unreachable=True)
    with anyio.fail_after(10):
        assert await process.wait() == -1
    assert process.exit_cause == "it does not answer"
    await process.stop(1)  # it can't, and says so in the log
    assert not await process.is_gone(), "nobody knows"
    for _ in range(2):
        with pytest.raises(ContainerError, match="it does not answer"):
            await launcher.launch("m", LAUNCH_SPEC, config_hash="h", port=8)
    assert bench.connects == 2  # looked for anew
    bench.client.error = None
    assert not await process.is_gone()
    bench.client.exits("c1", exit_code=0)
    assert await process.is_gone()
    process = await launcher.launch("m", LAUNCH_SPEC, config_hash="h", port=9)
    assert process.port == 9
    assert bench.client.stopped == [("c1", 0)]
    assert list(bench.client.all) == ["c2"]


def wanted(**hashes: str) -> dict[str, Wanted]:
    return {name: Wanted(value, lambda _port: LAUNCH_SPEC) for name, value in hashes.items()}


async def test_a_later_agent_takes_over_what_still_fits(bench: Bench) -> None:
    bench.foreign()
    first = bench.launcher()
    for name in ("kept", "changed", "gone", "ended"):
        await first.launch(name, LAUNCH_SPEC, config_hash="h", port=7)
    bench.client.exits("c4")
    later = bench.launcher()
    left = await later.left_running(wanted(kept="h", changed="h2", ended="h"))
    assert left == {"kept": Left(7, must_serve=False)}
    assert await later.reap_orphans(left) == ["changed", "ended", "gone"]
    assert sorted(bench.client.all) == ["c1", "other", "plain"]
    process = await later.launch("kept", LAUNCH_SPEC, config_hash="h", port=8)
    assert (process.port, process.is_adopted) == (7, True)
    assert len(bench.client.started) == 4
    other = replace(LAUNCH_SPEC, argv=("org/other",))
    process = await later.launch("kept", other, config_hash="h", port=9)
    assert (process.port, process.is_adopted) == (9, False)
    assert sorted(bench.client.all) == ["c5", "other", "plain"]


async def test_on_a_network_of_theirs_workers_are_reached_by_their_address(bench: Bench) -> None:
    process = await bench.launcher().launch("m", LAUNCH_SPEC, config_hash="h", port=7)
    assert (process.host, process.port) == ("127.0.0.1", 7)
    for _ in range(2):  # started, and then taken over
        later = bench.launcher(network="workers")
        process = await later.launch("m", LAUNCH_SPEC, config_hash="h", port=8)
        assert (process.host, process.port) == ("172.30.0.9", SPEC.port)
    assert list(bench.client.all) == ["c2"]  # a published one is replaced


async def test_labels_that_are_not_ours_in_form_are_not_adopted(bench: Bench) -> None:
    launcher = bench.launcher()
    await launcher.launch("m", LAUNCH_SPEC, config_hash="h", port=7)
    bench.client.all["c1"] = replace(
        bench.client.all["c1"], labels={**bench.client.all["c1"].labels, PORT: "x"}
    )
    bench.client.add("odd", {AGENT: "agent-id-1", LAUNCH: "?"})
    assert await launcher.left_running(wanted(m="h")) == {}
    assert await launcher.reap_orphans() == ["", "m"]


async def test_a_pull_of_the_command_line_goes_on(bench: Bench) -> None:
    await bench.launcher().launch("m", LAUNCH_SPEC, config_hash="h", port=7)
    bench.client.add("theirs", {AGENT: "agent-id-1", PULL: "big"})
    bench.client.add("left", {AGENT: "agent-id-1", PULL: "small"})
    bench.pulled_elsewhere.add("big")
    await bench.launcher().reap_orphans(["m"])
    assert sorted(bench.client.all) == ["c1", "theirs"]


async def test_an_agent_that_never_had_a_container_asks_nobody(bench: Bench) -> None:
    bench.foreign()
    assert await bench.launcher().left_running(wanted(m="h")) == {}
    assert await bench.launcher().reap_orphans() == []
    assert bench.connects == 0


async def test_an_engine_that_is_away_at_the_start_stops_nothing(bench: Bench) -> None:
    await bench.launcher().launch("m", LAUNCH_SPEC, config_hash="h", port=7)
    bench.client.error = ContainerError("away", is_unreachable=True)
    assert await bench.launcher().left_running(wanted(m="h")) == {}
    assert await bench.launcher().reap_orphans() == []


async def test_a_refusal_is_passed_on(bench: Bench) -> None:
    bench.client.refused = ContainerError("pull it")
    launcher = bench.launcher()
    for _ in range(2):
        with pytest.raises(OSError, match="pull it") as refused:
            await launcher.launch("m", LAUNCH_SPEC, config_hash="h", port=7)
        assert refused.value.strerror == "pull it"
    assert bench.connects == 1


async def test_each_launch_goes_to_its_kind(bench: Bench) -> None:
    processes = FakeLauncher()
    both = EitherLauncher(processes, bench.launcher())
    await both.launch("p", Launch(("x",)), config_hash="h", port=1)
    await both.launch("c", LAUNCH_SPEC, config_hash="h", port=2)
    assert [name for name, *_ in processes.launched] == ["p"]
    assert [port for *_, port in bench.client.started] == [2]
    processes.left["p"] = Left(1, must_serve=True)
    left = await both.left_running(wanted(p="h", c="h"))
    assert left == {"p": Left(1, must_serve=True), "c": Left(2, must_serve=False)}
    assert await both.reap_orphans(["c"]) == []
    assert processes.kept == ["c"]


async def test_a_worker_without_an_address_on_its_network_is_refused(bench: Bench) -> None:
    bench.client.addresses = {"other": "172.31.0.2", "workers": ""}
    launcher = bench.launcher(network="workers")
    with pytest.raises(ContainerError, match="no IPv4 address on the network that AGENT_WORKER_N"):
        await launcher.launch("m", LAUNCH_SPEC, config_hash="h", port=7)
    assert bench.client.all == {}  # nothing is left behind that holds memory


async def test_a_worker_that_lost_its_address_is_replaced(bench: Bench) -> None:
    launcher = bench.launcher(network="workers")
    await launcher.launch("m", LAUNCH_SPEC, config_hash="h", port=7)
    bench.client.all["c1"] = replace(bench.client.all["c1"], addresses={"workers": ""})
    assert await launcher.left_running(wanted(m="h")) == {}
    process = await launcher.launch("m", LAUNCH_SPEC, config_hash="h", port=7)
    assert (process.host, list(bench.client.all)) == ("172.30.0.9", ["c2"])
