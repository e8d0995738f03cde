"""Shows a pull: a bar on a terminal, else plain or JSON lines now and then."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

from local_agent.weights.files import gigabytes
from local_agent.weights.progress import OnProgress, Phase, Progress
from shared.kit.clock import Clock

_LINE_EVERY_S = 2.0


@contextlib.contextmanager
def shown(console: Console, clock: Clock, *, as_json: bool) -> Iterator[OnProgress]:
    """Give the callback that shows a pull in the way that fits the output."""
    if as_json:
        yield Lines(clock, lambda progress: typer.echo(json.dumps(asdict(progress))))
    elif console.is_terminal:
        with Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        ) as bars:
            task = bars.add_task("checking", total=None)
            yield lambda progress: _draw(bars, task, progress)
    else:
        yield Lines(clock, lambda progress: typer.echo(as_line(progress)))


class Lines:
    """Passes on a report every two seconds, and each change of source or phase that lasts."""

    def __init__(self, clock: Clock, write: Callable[[Progress], None]) -> None:
        """Write the first report at once."""
        self._clock = clock
        self._write = write
        self._next = clock()

    def __call__(self, progress: Progress) -> None:
        """Take a report."""
        now = self._clock()
        if progress.source and progress.phase is not Phase.DONE and now >= self._next:
            self._next = now + _LINE_EVERY_S
            self._write(progress)


def as_line(progress: Progress) -> str:
    """Return a report as one line of text."""
    parts = [progress.phase.value, progress.source]
    if progress.bytes_total:
        percent = 100 * progress.bytes_done / progress.bytes_total
        parts.append(f"{percent:.0f} % of {gigabytes(progress.bytes_total)}")
    elif progress.bytes_done:
        parts.append(gigabytes(progress.bytes_done))
    if progress.rate_bps is not None:
        parts.append(f"{gigabytes(int(progress.rate_bps))}/s")
    if progress.eta_s is not None:
        parts.append(f"{_duration(progress.eta_s)} left")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60} s"


def _draw(bars: Bars, task: TaskID, progress: Progress) -> None:
    bars.update(
        task,
        description=progress.phase.value,
        completed=progress.bytes_done,
        total=progress.bytes_total,
    )
