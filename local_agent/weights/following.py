"""Follows the program that pulls a repository, wherever it runs, and puts what it says into words."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio

from local_agent.cleaning import cleaned
from local_agent.weights.errors import (
    AccessDenied,
    ChecksumMismatch,
    NotEnoughSpace,
    PullError,
    SourceFailed,
    SourceNotFound,
    SourceUnreachable,
    WriteFailed,
)
from local_agent.weights.progress import Meter, Phase, gigabytes

T = TypeVar("T")

_TAIL_CHARS = 200

PROGRAM = Path(__file__).with_name("_hub_program.py")
"""Needs nothing but Python's standard library: a container gets its text, an interpreter here its path."""

Result = tuple[int, bool]
"""Bytes, and whether they were compared with what the hub tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What to say of the disk that the program writes to.

    `small` says that it has too little room, with `{needed}` and `{free}`; `full` that it filled up.
    """

    small: str
    full: str


class Follower:
    """Follows one run of the program for one repository."""

    def __init__(self, repo: str, meter: Meter, disk: Disk, stall_s: float) -> None:
        """Show on `meter`; give up after `stall_s` seconds without a byte."""
        self._repo = repo
        self._meter = meter
        self._disk = disk
        self._stall_s = stall_s
        self._last_line = ""

    @property
    def tail(self) -> str:
        """Return the last that was written beside the program's own lines, fit to be shown; may be empty."""
        return cleaned(self._last_line)[:_TAIL_CHARS]

    async def result(self, read: Callable[[], Awaitable[bytes | None]]) -> Result | None:
        """Follow the program to its end; None if that comes without a word, see `tail`.

        Args:
            read: returns what the program has written since, None once it has ended.

        Raises:
            PullError: what the program has failed of, or that it stalls.
        """
        async for line in self._lines(read):
            values = _values(line)
            if "result" in values:
                return int(values["result"]["size"]), bool(values["result"]["is_checked"])
            if "error" in values:
                raise self._failure(values["error"])
            if values:
                _show(self._meter, values)
            elif line.strip():
                self._last_line = line.decode("utf-8", "replace")
        return None

    async def _lines(self, read: Callable[[], Awaitable[bytes | None]]) -> AsyncIterator[bytes]:
        rest = b""
        while (chunk := await unless_stalled(read, self._meter, self._stall_s)) is not None:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line

    def _failure(self, error: Mapping[str, Any]) -> PullError:
        """Put what the program found into words."""
        own = {"space": (NotEnoughSpace, self._disk.small), "full": (WriteFailed, self._disk.full)}
        known: Mapping[str, tuple[type[PullError], str]] = {**_FAILURES, **own}
        kind, text = known.get(str(error.get("kind")), _SENSELESS)
        sizes = {name: gigabytes(int(error.get(name, 0))) for name in ("needed", "free")}
        kept = "; what is there is kept, the same command goes on from it"
        is_resumable = error.get("is_resumable")
        values = {**error, **sizes, "repo": self._repo, "kept": kept if is_resumable else ""}
        return kind(text.format_map(values))


async def unless_stalled(get: Callable[[], Awaitable[T]], meter: Meter, stall_s: float) -> T:
    """Return what `get` gives; give up once no byte has come for `stall_s` seconds.

    Raises:
        SourceUnreachable: it stalls.
    """
    while True:
        with anyio.move_on_after(max(0.0, stall_s - meter.still_s())):
            return await get()
        if meter.still_s() >= stall_s:
            raise SourceUnreachable(
                f"no byte has come for {stall_s / 60:g} min: check the network; the same"
                " command goes on from what is there"
            )


def _values(line: bytes) -> dict[str, Any]:
    """Read a line of the program; other lines are of the interpreter, and empty here."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _show(meter: Meter, values: Mapping[str, Any]) -> None:
    """Show how far the program is."""
    phase, before = Phase(values["phase"]), meter.progress()
    if "done" not in values:
        meter.show(phase)
        return
    if before.phase not in {phase, Phase.WAITING} or before.bytes_total != values["total"]:
        meter.begin(phase, total=values["total"], done=values["done"])
    meter.show(phase)
    meter.reach(values["done"])


_SENSELESS: tuple[type[PullError], str] = (SourceFailed, "the hub's answer makes no sense")
_FAILURES: Mapping[str, tuple[type[PullError], str]] = {
    "denied": (
        AccessDenied,
        (
            "{repo} is gated or private (or there is no such repository): accept the licence at"
            " https://huggingface.co/{repo} and set HF_TOKEN"
        ),
    ),
    "not_found": (
        SourceNotFound,
        "the hub has no such repository: {repo}; check the option repo",
    ),
    "no_weights": (SourceNotFound, "{repo} holds no weights that this engine loads"),
    "unreachable": (
        SourceUnreachable,
        (
            "the hub can't be reached or breaks off ({cause}): check the network, or set HF_ENDPOINT to"
            " a mirror{kept}"
        ),
    ),
    "disk": (WriteFailed, "can't write the weights: {reason}"),
    "checksum": (
        ChecksumMismatch,
        "the checksum of {file} is wrong; the file was removed: pull again",
    ),
    "status": (SourceFailed, "the hub answered with status {status}"),
    "unencrypted": (SourceFailed, "the hub redirects to an unencrypted address: refused"),
}
