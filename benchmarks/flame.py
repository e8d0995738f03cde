"""A flame graph of the router under load: where its CPU goes, function by function."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.processes import BenchError

PICTURE = ROOT / "docs" / "assets" / "flame.svg"
_HERTZ = 400
_WIDTH, _ROW, _TOP, _CHARACTER = 1200, 17, 30, 6.4
_LEAST = 0.004  # narrower than this is not drawn
_OURS, _OTHERS, _TEXT = "#7fbfa3", "#d5dbe1", "#1f2933"


@dataclass(slots=True)
class Frame:
    """A function as called from the one below, with the looks that found it at work."""

    name: str
    looks: int = 0
    calls: dict[str, Frame] = field(default_factory=dict)

    def call(self, name: str) -> Frame:
        """Return the frame of a function that this one calls."""
        return self.calls.setdefault(name, Frame(name))


class Recorder:
    """py-spy beside a running program; it looks from outside, and the program needs no preparation."""

    def __init__(self, picture: Path = PICTURE) -> None:
        """Find py-spy on PATH, or where PY_SPY says.

        Raises:
            BenchError: it is not there.
        """
        program = shutil.which(os.environ.get("PY_SPY") or "py-spy")
        if program is None:
            raise BenchError("a flame graph needs py-spy (PyPI) on PATH, or where PY_SPY says")
        self._program = program
        self.picture = picture

    def begin(self, pid: int, seconds: float, stacks: Path) -> subprocess.Popen[str]:
        """Start to look at the process `pid` for some whole seconds, one at least."""
        return subprocess.Popen(
            [
                *(self._program, "record", "--pid", str(pid), "--rate", str(_HERTZ)),
                *("--duration", str(max(1, int(seconds))), "--function", "--gil"),
                *("--format", "raw", "--output", str(stacks)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, looking: subprocess.Popen[str], stacks: Path, *, within_s: float) -> None:
        """Wait for what it saw, and draw it.

        Raises:
            BenchError: it saw nothing, as when the system lets nobody look at another process.
        """
        try:
            _, said = looking.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            looking.kill()
            looking.communicate()
            raise BenchError("py-spy does not come to an end") from None
        if looking.returncode:
            raise BenchError(f"py-spy failed: {said.strip()[-500:]}")
        root = read_stacks(stacks.read_text(encoding="utf-8").splitlines())
        if not root.looks:
            raise BenchError("py-spy saw nothing at work")
        self.picture.parent.mkdir(parents=True, exist_ok=True)
        self.picture.write_text(draw(root), encoding="utf-8")


def read_stacks(lines: Iterable[str]) -> Frame:
    """Return the tree of folded stacks (`outer;inner COUNT`), from where all of them part on."""
    root = Frame("all")
    for line in lines:
        stack, _, count = line.rpartition(" ")
        if not stack:
            continue
        root.looks += int(count)
        frame = root
        for name in stack.split(";"):
            frame = frame.call(name)
            frame.looks += int(count)
    return _branching(root)


def _branching(frame: Frame) -> Frame:
    """Skip what is at the bottom of all but a few looks: it is the way in, and costs nothing."""
    while frame.calls:
        widest = max(frame.calls.values(), key=lambda each: each.looks)
        if widest.looks < 0.95 * frame.looks:
            break
        frame = widest
    return frame


def draw(root: Frame) -> str:
    """Return the picture as SVG: the callers above, a frame as wide as its share of the CPU."""
    boxes = list(_boxes(root, root.looks, 0.0, 0))
    height = _TOP + _ROW * (1 + max(depth for depth, *_ in boxes)) + 10
    title = f"The router's CPU by function, small requests on 16 connections, {root.looks} looks"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="ui-monospace, monospace" font-size="11" role="img"><title>{title}</title>'
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>'
        f'<text x="4" y="18" fill="{_TEXT}" font-size="13">{title}</text>'
    )
    return head + "".join(_box(*box) for box in boxes) + "</svg>\n"


_Box = tuple[int, float, float, str]


def _boxes(frame: Frame, all_looks: int, left: float, depth: int) -> Iterator[_Box]:
    share = frame.looks / all_looks
    if share < _LEAST:
        return
    yield depth, left, share, frame.name
    for each in sorted(frame.calls.values(), key=lambda each: -each.looks):
        yield from _boxes(each, all_looks, left, depth + 1)
        left += each.looks / all_looks


def _box(depth: int, left: float, share: float, name: str) -> str:
    x, width, y = left * _WIDTH, share * _WIDTH, _TOP + depth * _ROW
    is_ours = any(f"({folder}/" in name for folder in ("router", "shared", "local_agent"))
    fits = int((width - 6) / _CHARACTER)
    text = f'<text x="{x + 3:.1f}" y="{y + 12}" fill="{_TEXT}">{escape(name[:fits])}</text>'
    return (
        f"<g><title>{escape(name)}: {share:.1%}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 1}" '
        f'fill="{_OURS if is_ours else _OTHERS}" stroke="white"/>{text if fits > 2 else ""}</g>'
    )
