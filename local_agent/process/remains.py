"""What is left of workers that nobody could end: their records keep it findable, until it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec
import psutil

from local_agent.domain import Unended
from local_agent.process import tree
from local_agent.process.records import Record, Records

_MARKER_CHARS = 8


def model_of(name: str) -> str:
    """Return the model of a record's name: ids have no spaces, what is left of a worker has one."""
    return name.partition(" ")[0]


def set_aside(records: Records, record: Record) -> Record:
    """Give the record a name of its own, so that the model's next worker does not take its place.

    Raises:
        OSError: it can't be written; it stays as it is.
    """
    name = f"{model_of(record.name)} (leaked {record.marker[:_MARKER_CHARS]})"
    if name == record.name:
        return record
    aside = msgspec.structs.replace(record, name=name)
    records.write(aside)
    records.remove(record.name)
    return aside


class Remains:
    """Processes of earlier agents that could not be ended."""

    def __init__(self, records: Records) -> None:
        """Know of none."""
        self._records = records
        self._found: dict[str, tuple[Unended, Sequence[psutil.Process]]] = {}

    def note(self, record: Record, processes: Sequence[psutil.Process]) -> None:
        """Take what still lives of a recorded worker."""
        with suppress(OSError):  # a full disk: under its old name it is found just as well
            record = set_aside(self._records, record)
        rss = 0
        for process in processes:
            with suppress(psutil.Error):
                rss += process.memory_info().rss
        left = Unended(
            model=model_of(record.name), config_hash=record.config_hash, memory_mb=rss // 2**20
        )
        self._found[record.name] = left, processes

    def living(self) -> dict[str, Unended]:
        """Return what still lives; records of what has ended are removed."""
        for name, (_, processes) in list(self._found.items()):
            if not any(tree.lives(process) for process in processes):
                self._found.pop(name, None)
                self._records.remove(name)
        return {name: left for name, (left, _) in list(self._found.items())}
