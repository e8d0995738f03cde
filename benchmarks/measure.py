"""The measurements: rounds over all targets, one figure after the other."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import DIRECT, Results
from benchmarks.flame import Recorder
from benchmarks.lateness import looks
from benchmarks.machine import Pinning
from benchmarks.native import Load, Upstream
from benchmarks.processes import BenchError, Program, await_answer, cpu_seconds, rss_mb
from benchmarks.registry import MODEL
from benchmarks.targets import Target

_START_S = 90.0
_SETTLE_S = 1.0
# A flame graph needs some thousand looks; while they are written, the load goes on for a moment.
_FLAME_S = 10.0
_FLAME_TAIL_S = 1.0
_WARM_UP_S = 0.5  # what is loaded or built on first use is no cost of a request
# Far enough apart that no two chunks of a stream fall into one write.
_CHUNK_DELAY_US = 50_000
MANY, MOST = 300, 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long and how often is measured. Everything ends: streams have a timeout."""

    rounds: int = 3
    seconds: float = 3.0
    chunks: int = 100
    stream_timeout_s: int = 60


@dataclass(frozen=True, slots=True)
class Bodies:
    """The request bodies as files."""

    small: Path
    big: Path
    stream: Path


def write_bodies(folder: Path) -> Bodies:
    """Write the bodies: 177 bytes, 100 KB in 21 messages, and a stream's."""
    words = random.Random(7)  # the same text in each run
    system = {"role": "system", "content": "You are a helpful assistant."}
    tail = {"temperature": 0.7, "max_tokens": 128}
    ask = [system, {"role": "user", "content": "Hello, who are you?"}]
    talk = [system] + [
        {"role": "assistant" if turn % 2 else "user", "content": _prose(words, 5_000)}
        for turn in range(20)
    ]
    contents: dict[str, dict[str, Any]] = {
        "small": {"model": MODEL, "messages": ask, **tail},
        "big": {"model": MODEL, "messages": talk, **tail},
        "stream": {"model": MODEL, "messages": ask, **tail, "stream": True},
    }
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / f"{name}.json"
        paths[name].write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    return Bodies(**paths)


def _prose(words: random.Random, length: int) -> str:
    text = ""
    while len(text) < length:
        text += "".join(words.choices("etaoinshrdlu", k=words.randint(2, 9))) + " "
    return text


@dataclass(frozen=True, slots=True)
class Running:
    """A target that is up; `program` is None for the upstream itself."""

    target: Target
    program: Program | None


@dataclass(slots=True)
class Bench:
    """One run over all targets."""

    targets: Sequence[Target]
    upstreams: Sequence[Upstream]
    load: Load
    bodies: Bodies
    pinning: Pinning
    effort: Effort
    say: Callable[[str], None]
    results: Results

    def run(self) -> Results:
        """Measure all rounds. What fails is noted, and the rest goes on."""
        for number in range(1, self.effort.rounds + 1):
            self.say(f"round {number} of {self.effort.rounds}")
            with contextlib.ExitStack() as stack:
                chosen = [t for t in self.targets if number == 1 or not t.is_slow]
                up = [r for t in chosen for r in self._start(t, number, stack)]
                self._measure(up, number)
        return self.results

    def draw(self, target: Target, recorder: Recorder) -> None:
        """Record a flame graph of a target under small requests.

        Raises:
            BenchError: there is none.
        """
        seconds = max(self.effort.seconds, _FLAME_S)
        with contextlib.ExitStack() as stack:
            running = next(self._start(target, 0, stack), None)
            if running is None or running.program is None:
                raise BenchError(f"{target.name} is no gateway, or did not start")
            stacks = target.folder / "stacks.txt"
            looking = recorder.begin(running.program.pid, seconds, stacks)
            self._load_requests(target, self.bodies.small, 16, seconds + _FLAME_TAIL_S)
            recorder.finish(looking, stacks, within_s=_START_S)

    def _start(self, target: Target, number: int, stack: contextlib.ExitStack) -> Iterator[Running]:
        if not target.command:
            yield Running(target, None)
            return
        program = Program(
            [*self.pinning.gateway, *target.command],
            env=target.env,
            folder=target.folder,
            log=target.folder / "output.log",
        )
        stack.callback(program.stop)
        body = self.bodies.small.read_bytes()
        try:
            took = await_answer(
                program, target.port, target.path, body, key=target.key, within_s=_START_S
            )
        except BenchError as error:
            self._note(target, "start", number, str(error))
            return
        time.sleep(_SETTLE_S)
        if not target.only_small:
            self.results.add(target.name, "start", number, took)
            self.results.add(target.name, "rss_idle", number, rss_mb(program.pid))
        self._load_requests(target, self.bodies.small, 16, _WARM_UP_S)
        yield Running(target, program)

    def _measure(self, up: list[Running], number: int) -> None:
        """Take one figure of all targets before the next, so that all see the same machine."""
        steps: list[Callable[[Running, int], None]] = [
            self._latency,
            self._small,
            self._big,
            self._chunks,
            self._many_streams,
        ]
        for step in steps:
            for running in up:
                if running.target.only_small and step != self._small:
                    continue
                self.say(f"  {step.__name__.strip('_')}: {running.target.name}")
                try:
                    step(running, number)
                except BenchError as error:
                    self._note(running.target, step.__name__.strip("_"), number, str(error))

    def _latency(self, running: Running, number: int) -> None:
        answer = self._request(running, self.bodies.small, 1, number)
        for quantile in ("p50", "p99"):
            value = answer[f"{quantile}_us"] / 1000
            if running.target.name != DIRECT:
                floor = self.results.values.get((DIRECT, f"added_{quantile}"), {}).get(number)
                if floor is None:
                    raise BenchError("added latency needs the target `direct`")
                value -= floor
            self.results.add(running.target.name, f"added_{quantile}", number, value)

    def _small(self, running: Running, number: int) -> None:
        self._cpu_per_request(running, self.bodies.small, "cpu_small", number)

    def _big(self, running: Running, number: int) -> None:
        self._cpu_per_request(running, self.bodies.big, "cpu_big", number)

    def _cpu_per_request(self, running: Running, body: Path, key: str, number: int) -> None:
        if running.program is None:
            return
        before = cpu_seconds(running.program.pid)
        answer = self._request(running, body, 16, number)
        spent = cpu_seconds(running.program.pid) - before
        self.results.add(running.target.name, key, number, spent * 1e6 / answer["requests"])

    def _request(
        self, running: Running, body: Path, connections: int, number: int
    ) -> dict[str, Any]:
        target = running.target
        answer = self._load_requests(target, body, connections, self.effort.seconds)
        if answer["non_2xx"] or answer["errors"]:
            counts = f"{answer['non_2xx']} not 2xx, {answer['errors']} errors"
            self._note(target, body.stem, number, f"{counts} of {answer['requests']} requests")
        if not answer["requests"]:
            raise BenchError("no request was answered")
        return answer

    def _load_requests(
        self, target: Target, body: Path, connections: int, seconds: float
    ) -> dict[str, Any]:
        return self.load.requests(
            target.port,
            target.path,
            body,
            key=target.key,
            connections=connections,
            seconds=seconds,
        )

    def _chunks(self, running: Running, number: int) -> None:
        if running.program is None:
            return
        name, address = running.target.name, (running.target.port, running.target.metrics)
        looked = looks(*address)
        before = cpu_seconds(running.program.pid)
        answer = self._stream(running, MANY, number)
        spent = cpu_seconds(running.program.pid) - before
        self.results.add(name, "cpu_chunk", number, spent * 1e6 / answer["chunks"])
        share = looks(*address).late_since(looked)
        if share is not None:
            self.results.add(name, "late", number, 100 * share)

    def _many_streams(self, running: Running, number: int) -> None:
        name = running.target.name
        answer = self._stream(running, MOST, number)
        self.results.add(name, "lost", number, MOST - answer["finished"])
        self.results.add(name, "lag_p99", number, answer["lag_p99_us"] / 1000)
        self.results.add(name, "chunks_per_s", number, answer["chunks_per_s"])
        floor = self.results.values.get((DIRECT, "chunks_per_s"), {}).get(number)
        if floor:
            self.results.add(name, "rate", number, 100 * answer["chunks_per_s"] / floor)
        if running.program:
            self.results.add(name, "rss_after", number, rss_mb(running.program.pid))

    def _stream(self, running: Running, count: int, number: int) -> dict[str, Any]:
        target = running.target
        for upstream in self.upstreams:
            upstream.shape(chunks=self.effort.chunks, delay_us=_CHUNK_DELAY_US)
        answer = self.load.streams(
            target.port,
            target.path,
            self.bodies.stream,
            key=target.key,
            count=count,
            timeout_s=self.effort.stream_timeout_s,
        )
        if answer["finished"] != count:
            text = f"{answer['finished']} of {count} finished, {answer['failed']} failed"
            self._note(target, f"{count} streams", number, text)
        if not answer["chunks"]:
            raise BenchError("no chunk arrived")
        return answer

    def _note(self, target: Target, what: str, number: int, text: str) -> None:
        note = f"{target.name}, {what}, round {number}: {text}"
        self.results.notes.append(note)
        self.say(f"  ! {note}")
