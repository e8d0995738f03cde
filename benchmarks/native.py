"""The programs in C: built on first use, and their JSON read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import BenchError, ask, plain_environment

SOURCES = Path(__file__).parent / "native"
CACHE = Path(__file__).parent / ".cache"
PROGRAMS = ("mock_upstream", "load_client", "stream_client")
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")
NO_COMPILER = (
    "there is no C compiler (`cc`): install one, e.g. Debian's package `gcc` with `libc6-dev`, or "
    "Xcode's command line tools on macOS. The load tools are built with it"
)


def has_compiler() -> bool:
    """Tell whether the programs can be built here."""
    return shutil.which("cc") is not None


def build(cache: Path = CACHE) -> Path:
    """Return the folder with the programs, built if their sources have changed.

    Raises:
        BenchError: there is no compiler, or it refuses the sources.
    """
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    folder = cache / digest.hexdigest()[:16]
    if all((folder / name).is_file() for name in PROGRAMS):
        return folder
    compiler = shutil.which("cc")
    if compiler is None:
        raise BenchError(NO_COMPILER)
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        unfinished = folder / f"{name}.{os.getpid()}"
        command = [compiler, *_FLAGS, "-o", str(unfinished), str(SOURCES / f"{name}.c")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise BenchError(f"the C compiler refuses {name}.c:\n{done.stderr[-2000:]}")
        unfinished.replace(folder / name)  # two builds at once don't disturb each other
    return folder


class Upstream:
    """A running mock upstream."""

    def __init__(self, programs: Path, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, str(programs / "mock_upstream"), "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line.startswith("port "):
            self.stop()
            raise BenchError("the mock upstream does not start")
        self.port = int(line.split()[1])

    def shape(self, *, chunks: int, delay_us: int) -> None:
        """Set how many chunks streams have from now on, and how far apart."""
        if ask(self.port, f"/set?c={chunks}&d={delay_us}&t=0") != 200:
            raise BenchError("the mock upstream does not answer")

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


class Load:
    """The two load clients."""

    def __init__(self, programs: Path, prefix: Sequence[str] = ()) -> None:
        self._programs = programs
        self._prefix = prefix

    def requests(
        self, port: int, path: str, body: Path, *, key: str, connections: int, seconds: float
    ) -> dict[str, Any]:
        """Run a closed loop of connections; see load_client.c for the answer."""
        arguments = [str(port), path, str(body), str(connections), str(seconds)]
        return self._run("load_client", arguments, key, seconds + 15)

    def streams(
        self, port: int, path: str, body: Path, *, key: str, count: int, timeout_s: int
    ) -> dict[str, Any]:
        """Run many streams at once, begun over a second; see stream_client.c for the answer."""
        arguments = [str(port), path, str(body), str(count), "1000", str(timeout_s)]
        return self._run("stream_client", arguments, key, timeout_s + 15)

    def _run(self, program: str, arguments: list[str], key: str, within_s: float) -> dict[str, Any]:
        done = subprocess.run(
            [*self._prefix, str(self._programs / program), *arguments],
            env=plain_environment({"BENCH_KEY": key}),
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"{program} failed: {done.stderr[-500:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
