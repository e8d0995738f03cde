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

from local_agent.weights.progress import OnProgress, Phase, Progress, as_line
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


def _draw(bars: Bars, task: TaskID, progress: Progress) -> None:
    bars.update(
        task,
        description=progress.phase.value,
        completed=progress.bytes_done,
        total=progress.bytes_total,
    )
