"""Runs `pip download` and says in plain words why it failed."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from local_agent.weights.errors import (
    ChecksumMismatch,
    PullError,
    SourceFailed,
    SourceNotFound,
    SourceUnreachable,
    WriteFailed,
)
from local_agent.weights.files import DISK_FULL
from shared.kit.clock import Clock

_TAIL_BYTES = 64 * 1024
_OPTIONS = ("--no-deps", "--only-binary=:all:", "--require-hashes", "--progress-bar=off")

# What pip says → what to tell; the first that matches decides. Its unreachable index also ends in
# "No matching distribution", so the order matters.
_REASONS: tuple[tuple[str, type[PullError], str], ...] = (
    (
        r"No module named pip",
        SourceFailed,
        "pip is missing beside this program: install it again with its extra `llama`, which has it",
    ),
    (r"DO NOT MATCH THE HASHES", ChecksumMismatch, "the package's checksum is wrong"),
    (r"No space left on device", WriteFailed, DISK_FULL),
    (
        r"connection broken by|new connection|timed out|CERTIFICATE_VERIFY_FAILED|Connection reset",
        SourceUnreachable,
        "the package index can't be reached: check the network and pip's configuration",
    ),
    (
        r"No matching distribution|Could not find a version",
        SourceNotFound,
        "the package index does not have this version",
    ),
    (r"40[13] Client Error|status code 40[13]", SourceFailed, "the package index refused access"),
)
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+]*://\S+|(?<![\w.])~?/\S+", re.IGNORECASE)


class Pip:
    """Downloads wheels with the user's own pip configuration; installs nothing."""

    def __init__(
        self,
        *,
        python: str,
        env: Mapping[str, str],
        clock: Clock,
        stall_s: float,
        poll_s: float,
    ) -> None:
        """Run `python -m pip` with `env`; end it after `stall_s` seconds without a byte."""
        self._python = python
        self._env = env
        self._clock = clock
        self._stall_s = stall_s
        self._poll_s = poll_s

    async def download(
        self, requirement: str, folder: Path, on_bytes: Callable[[int], None]
    ) -> Path:
        """Download one pinned requirement (`NAME==VERSION --hash=…`) into `folder`.

        Args:
            requirement: a line of a requirements file.
            folder: an empty folder; everything that pip writes goes there, its cache excepted.
            on_bytes: called with the bytes that are there so far.

        Returns:
            The wheel.

        Raises:
            PullError: by cause; without addresses or paths.
        """
        wheels, scratch, wanted = folder / "wheels", folder / "scratch", folder / "wanted.txt"
        wheels.mkdir()
        scratch.mkdir()
        wanted.write_text(requirement + "\n", encoding="utf-8")
        output = await self._run(
            ("download", *_OPTIONS, "-r", str(wanted), "-d", str(wheels)), folder, on_bytes
        )
        found = sorted(wheels.glob("*.whl"))
        if not found:
            raise reason(output)
        return found[0]

    async def _run(
        self, args: tuple[str, ...], folder: Path, on_bytes: Callable[[int], None]
    ) -> str:
        # pip's own folder is the working directory: a `pip.py` where the user stands is not run.
        process = await asyncio.create_subprocess_exec(
            self._python,
            "-m",
            "pip",
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=folder,
            env={
                **self._env,
                "TMPDIR": str(folder / "scratch"),
                "PIP_NO_INPUT": "1",
                "PIP_NO_COLOR": "1",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            },
        )
        reader = asyncio.create_task(_tail(process))
        try:
            await self._watch(process, folder, on_bytes)
            output = await reader
        finally:
            await _end(process, reader)
        if process.returncode:
            raise reason(output)
        return output

    async def _watch(
        self, process: asyncio.subprocess.Process, folder: Path, on_bytes: Callable[[int], None]
    ) -> None:
        ended = asyncio.create_task(process.wait())
        most, since = 0, self._clock()
        try:
            while not (await asyncio.wait({ended}, timeout=self._poll_s))[0]:
                size = await asyncio.to_thread(_largest, folder)
                if size > most:
                    most, since = size, self._clock()
                    on_bytes(most)
                elif self._clock() - since > self._stall_s:
                    raise SourceUnreachable(
                        f"pip made no progress for {self._stall_s:.0f} s: check the network"
                    )
        finally:
            ended.cancel()


def reason(output: str) -> PullError:
    """Return the error that pip's output tells of."""
    for pattern, kind, message in _REASONS:
        if re.search(pattern, output, re.IGNORECASE):
            return kind(message)
    lines = [line for line in output.splitlines() if line.startswith("ERROR:")]
    detail = _ADDRESS.sub("…", lines[-1].removeprefix("ERROR:").strip()) if lines else "no reason"
    return SourceFailed(f"pip failed: {detail}")


def _largest(folder: Path) -> int:
    """Return the size of the largest file: pip copies the wheel, so a sum would count it twice."""
    # os.walk passes over folders that pip removes meanwhile.
    return max(
        (_size(Path(root, name)) for root, _, names in os.walk(folder) for name in names), default=0
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # pip removed it meanwhile


async def _tail(process: asyncio.subprocess.Process) -> str:
    kept = b""
    while process.stdout is not None and (chunk := await process.stdout.read(8192)):
        kept = (kept + chunk)[-_TAIL_BYTES:]
    return kept.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process, reader: asyncio.Task[str]) -> None:
    """Leave no process behind, also when the pull was cancelled."""
    if process.returncode is None:
        process.kill()
        await process.wait()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
