"""Edits of the agent's file at random, good and bad, while requests run."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from local_agent.config import AgentConfig
from local_agent.config_file import ConfigError, load_config, to_deployments
from local_agent.domain import ModelId
from local_agent.reloading import Changes, Reloader, Taken, compare
from local_agent.weights.store import WeightStore
from shared.http.errors import ApiError
from tests.local_agent.conftest import FakeProcess, Stage
from tests.local_agent.residency import running

MODELS = ("a", "b", "c", "org/d")
BAD = ("models: [", "modles: []", "models:\n  - {id: a, engine: warp}", "[]", "models: [{id: a}]")


class Edits:
    """A file that somebody edits, an agent's supervisor that follows it, and its clients."""

    def __init__(self, stage: Stage, folder: Path, seed: int) -> None:
        self.rng = Random(seed)
        self.stage = stage
        self.path = folder / "agent.yaml"
        self.store = WeightStore(folder / "models")
        self.supervisor = stage.supervisor()
        self.write_good()
        self.taken = Taken(AgentConfig(), ())
        self.reloader = Reloader(self.path, read=self._read, take=self._take)
        self.requests: list[anyio.Event] = []
        self.busy: dict[int, int] = {}
        self.served = self.refused = self.good = self.bad = 0

    def _read(self) -> AgentConfig:
        return load_config(self.path, {})

    def _take(self, config: AgentConfig) -> Changes:
        before, self.taken = self.taken, Taken(config, to_deployments(config, self.store))
        self.supervisor.set_desired(self.taken.deployments)
        return compare(before, self.taken, overridden={})

    def write_good(self) -> None:
        chosen = [name for name in MODELS if self.rng.random() < 0.8]
        models: list[dict[str, Any]] = [
            {
                "id": name,
                "engine": "simulated",
                "preload": True,
                "options": {"tokens": self.rng.randrange(3)},
                "weight": self.rng.randrange(1, 4),
            }
            for name in chosen
        ]
        self.path.write_text(json.dumps({"known_models": False, "models": models}))

    async def request(self) -> None:
        """Ask a model, and hold the answer open until the test ends it."""
        done = anyio.Event()
        self.requests.append(done)
        model = ModelId(self.rng.choice(MODELS))
        try:
            place = await self.supervisor.admission.admit(model, load_wait_s=1000)
        except ApiError:
            self.refused += 1
            if done in self.requests:
                self.requests.remove(done)
            return
        with place:
            process = self.process_of(model)
            self.busy[process.pid] = self.busy.get(process.pid, 0) + 1
            await done.wait()
            self.busy[process.pid] -= 1
        self.served += 1

    def process_of(self, model: str) -> FakeProcess:
        view = next(one for one in self.supervisor.workers() if one.model == model)
        return next(one for one in self.stage.launcher.processes if one.pid == view.pid)

    async def step(self, group: anyio.abc.TaskGroup) -> None:
        what = self.rng.choices(["edit", "spoil", "request", "finish"], [10, 4, 40, 38])[0]
        if what == "request" and len(self.requests) < 20:
            group.start_soon(self.request)
        elif what == "finish" and self.requests:
            self.requests.pop(self.rng.randrange(len(self.requests))).set()
        elif what == "edit":
            self.write_good()
            await self.reloader.reload()
            self.good += 1
        elif what == "spoil":
            self.path.write_text(self.rng.choice(BAD))
            before = self.taken
            with pytest.raises(ConfigError):
                await self.reloader.reload()
            assert self.taken is before
            assert self.reloader.problem is not None
            self.bad += 1

    def check(self) -> None:
        for process in self.stage.launcher.processes:
            assert process.code is None or not self.busy.get(process.pid), "a request was killed"

    def alive(self) -> dict[str, str]:
        """Return the configuration hash of each model that has a process."""
        launcher = self.stage.launcher
        pairs = zip(launcher.launched, launcher.processes, strict=True)
        found = [(name, digest) for (name, _, digest, _), one in pairs if one.code is None]
        assert len(dict(found)) == len(found), "one model, two processes"
        return dict(found)

    def wanted(self) -> dict[str, str]:
        return {one.model: one.config_hash for one in self.taken.deployments}


@pytest.mark.no_cover  # random: what it reaches is tested by name elsewhere
@pytest.mark.parametrize("seed", range(4))
async def test_workers_end_as_the_last_good_file_says_and_no_request_is_killed(
    stage: Stage, tmp_path: Path, seed: int
) -> None:
    edits = Edits(stage, tmp_path, seed)
    supervisor = edits.supervisor
    async with running(supervisor), anyio.create_task_group() as group:
        for _ in range(400):
            await edits.step(group)
            for _ in range(edits.rng.randrange(6)):
                await anyio.lowlevel.checkpoint()
                edits.check()
        with anyio.fail_after(20):
            while edits.requests or edits.alive() != edits.wanted():
                while edits.requests:
                    edits.requests.pop().set()
                await anyio.sleep(0.002)
                edits.check()
        assert {view.model for view in supervisor.workers()} == set(edits.wanted())
        assert {model.id for model in supervisor.models()} == set(edits.wanted())
    assert min(edits.good, edits.bad) > 10
    assert edits.served > 50
