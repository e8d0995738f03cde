"""The agent's file while the agent runs: what is noticed, taken, refused, and said of it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from local_agent.config import AgentConfig
from local_agent.config_file import ConfigError, load_config, to_deployments
from local_agent.reloading import Changes, Reloader, Taken, compare
from local_agent.weights.store import WeightStore

ONE = "known_models: false\nmodels:\n  - {id: one, engine: simulated}\n"
TWO = ONE + "  - {id: two, engine: simulated}\n"
BAD = "known_models: false\nmodels:\n  - {id: one, engine: warp}\n"


class Scene:
    """A file, a reloader that looks at it, and what it has put to use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reads = 0
        self.taken: list[list[str]] = []
        self.reloader = Reloader(path, read=self.read, take=self.take)

    def read(self) -> AgentConfig:
        self.reads += 1
        return load_config(self.path, {}, may_be_missing=True)

    def take(self, config: AgentConfig) -> Changes:
        self.taken.append([model.id for model in config.models])
        return Changes(changed=("one",))

    async def look(self, times: int = 2) -> None:
        for _ in range(times):
            await self.reloader.look()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    path = tmp_path / "agent.yaml"
    path.write_text(ONE)
    return Scene(path)


async def test_a_file_that_stays_is_not_read_again(scene: Scene) -> None:
    await scene.look(30)
    assert scene.reads == 0


async def test_a_change_is_taken_once_nobody_writes_any_more(scene: Scene) -> None:
    scene.path.write_text(ONE[:40])  # an editor has written half of it
    await scene.look(1)
    scene.path.write_text(TWO)
    await scene.look(1)
    assert scene.taken == [], "it was written to since the last look"
    await scene.look(1)
    assert scene.taken == [["one", "two"]]
    await scene.look(20)
    assert scene.reads == 1


async def test_a_replaced_file_is_noticed_even_with_the_old_time_and_size(scene: Scene) -> None:
    before = scene.path.stat()
    other = scene.path.with_name("other")
    other.write_text(ONE.replace("one", "two"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(scene.path)
    assert scene.path.stat().st_size == before.st_size
    await scene.look()
    assert scene.taken == [["two"]]


async def test_a_bad_file_keeps_what_is_in_use_until_it_is_mended(scene: Scene) -> None:
    with capture_logs() as logs:
        scene.path.write_text(BAD)
        await scene.look(25)
        problem = scene.reloader.problem
        scene.path.write_text(TWO)
        await scene.look()
    assert scene.taken == [["one", "two"]]
    assert problem is not None
    assert problem.startswith("agent.yaml, line 3: models[0].engine: no such engine")
    assert scene.reloader.problem is None
    assert [(log["event"], log.get("reason")) for log in logs] == [
        ("config_refused", problem),  # once, not with each look
        ("config_reloaded", None),
    ]
    assert logs[1]["changed"] == ["one"]


async def test_what_kept_a_file_from_being_read_may_pass_unseen(scene: Scene) -> None:
    is_broken = True

    def read() -> AgentConfig:
        if is_broken:
            raise ConfigError("agent.yaml", "can't be read: Input/output error")
        return scene.read()

    scene.reloader = Reloader(scene.path, read=read, take=scene.take)
    with pytest.raises(ConfigError):
        await scene.reloader.reload()
    is_broken = False
    await scene.look(9)
    early = scene.reloader.problem
    assert early is not None, "not with each look"
    await scene.look(1)
    assert scene.reloader.problem is None
    assert scene.taken == [["one"]]


async def test_the_file_and_its_folder_may_come_later(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "new" / "agent.yaml")
    await scene.look()
    assert scene.reads == 0
    scene.path.parent.mkdir()
    await scene.look()
    scene.path.write_text(ONE)
    await scene.look()
    assert scene.taken == [["one"]]


async def test_a_file_that_vanishes_ends_no_model(scene: Scene) -> None:
    scene.path.unlink()
    await scene.look()
    assert scene.taken == []
    assert scene.reloader.problem == (
        "agent.yaml: is gone; put it back, or restart the agent to go on with the known models"
    )
    scene.path.write_text(ONE)
    await scene.look()
    assert scene.reloader.problem is None


async def test_a_reload_by_command_needs_no_second_look(scene: Scene) -> None:
    scene.path.write_text(TWO)
    assert (await scene.reloader.reload()).changed == ("one",)
    await scene.look(5)
    assert scene.taken == [["one", "two"]]
    scene.path.write_text(BAD)
    with pytest.raises(ConfigError, match="no such engine"):
        await scene.reloader.reload()
    assert scene.taken == [["one", "two"]]


async def test_an_agent_that_stops_takes_nothing(scene: Scene) -> None:
    scene.reloader.end()
    scene.path.write_text(TWO)
    await scene.look()
    assert scene.taken == []


async def test_it_looks_each_second(scene: Scene) -> None:
    waits: list[float] = []

    class Over(Exception):
        pass

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:
            raise Over
        scene.path.write_text(TWO) if len(waits) == 1 else None

    scene.reloader = Reloader(scene.path, read=scene.read, take=scene.take, sleep=sleep)
    with pytest.raises(Over):
        await scene.reloader.run()
    assert waits == [1.0] * 4
    assert scene.taken == [["one", "two"]]


async def test_a_large_file_holds_no_request_up(scene: Scene) -> None:
    threads: list[int] = []

    def read() -> AgentConfig:
        threads.append(threading.get_ident())
        return scene.read()

    await Reloader(scene.path, read=read, take=scene.take).reload()
    assert threads != [threading.get_ident()], "a loop that parses it answers nobody meanwhile"


# -- what has changed ----------------------------------------------------------------------------


def taken(text: str, folder: Path) -> Taken:
    path = folder / "agent.yaml"
    path.write_text(text)
    config = load_config(path, {})
    return Taken(config, to_deployments(config, WeightStore(folder / "models")))


def model(**fields: Any) -> str:
    words = ", ".join(
        f"{name}: {value}" for name, value in {"engine": "simulated", **fields}.items()
    )
    return f"known_models: false\nmodels:\n  - {{id: one, {words}}}\n"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (ONE, TWO, {"added": ["two"]}),
        (TWO, ONE, {"removed": ["two"]}),
        (ONE, f"# a remark\n{ONE}", {}),
        (model(), model(aliases="[a]"), {"changed": ["one"]}),
        (model(), model(pin="true"), {"changed": ["one"]}),
        (model(), model(ttl=5), {"changed": ["one"]}),
        (model(), model(weight=5), {"changed": ["one"]}),
        (model(), model(preload="true"), {"changed": ["one"]}),
        (
            model(),
            model(memory="1 GiB"),
            {"changed": ["one"], "notes": ["memory of one counts from its next load on"]},
        ),
        (model(), model(context=99), {"changed": ["one"], "restarting": ["one"]}),
        (model(), model(parallel=9), {"changed": ["one"], "restarting": ["one"]}),
        (model(), model(options="{tokens: 3}"), {"changed": ["one"], "restarting": ["one"]}),
        (ONE, f"{ONE}memory_budget: 9 GiB\n", {"settings": ["memory_budget"]}),
        (
            ONE,
            f"{ONE}min_residency_s: 9\nlabels: {{a: b}}\n",
            {"settings": ["labels", "min_residency_s"]},
        ),
        (
            ONE,
            f"{ONE}drain_s: 9\n",
            {
                "settings": ["drain_s"],
                "notes": ["AGENT_DRAIN_S is set and beats drain_s: unset it and restart the agent"],
            },
        ),
    ],
)
def test_changes_are_named(
    tmp_path: Path, before: str, after: str, expected: dict[str, list[str]]
) -> None:
    found = compare(
        taken(before, tmp_path), taken(after, tmp_path), overridden={"drain_s": "AGENT_DRAIN_S"}
    )
    assert {name: value for name, value in found.as_values().items() if value} == expected
    assert bool(found) is bool(expected)


def test_a_name_for_the_engine_that_was_taken_anyway_restarts_nothing(tmp_path: Path) -> None:
    source = "models:\n  - {id: one, source: hf:a/b:c.gguf}\nknown_models: false"
    named = source.replace("{id: one", "{id: one, engine: llama_cpp")
    found = compare(taken(source, tmp_path), taken(named, tmp_path), overridden={})
    assert (found.changed, found.restarting) == (("one",), ())
