"""How late a gateway's event loop was, as its own metrics tell."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.processes import BenchError, fetch

_NAME = "iir_event_loop_delay_seconds"
_LIMIT = "0.01"


@dataclass(frozen=True, slots=True)
class Looks:
    """How often the loop was looked at since its start, and how often it was in time (within 10 ms)."""

    all: int = 0
    in_time: int = 0

    def late_since(self, before: Looks) -> float | None:
        """Return the share of the looks since `before` that were late; None if there were none."""
        count = self.all - before.all
        return (count - (self.in_time - before.in_time)) / count if count else None


def looks(port: int, path: str) -> Looks:
    """Ask for the metrics at `path`; without one there are no looks.

    Raises:
        BenchError: it does not answer.
    """
    if not path:
        return Looks()
    status, text = fetch(port, path)
    if status != 200:
        raise BenchError(f"its metrics answered {status or 'nothing'}")
    return read_looks(text.decode())


def read_looks(text: str) -> Looks:
    """Return what Prometheus' text tells of it."""
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(_NAME))
    in_time = values.get(f'{_NAME}_bucket{{le="{_LIMIT}"}}', "0")
    return Looks(all=int(float(values.get(f"{_NAME}_count", "0"))), in_time=int(float(in_time)))
