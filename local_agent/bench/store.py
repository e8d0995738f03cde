"""Where measurements are kept: `$IIR_HOME/agent/bench.json`, replaced as a whole at each change."""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from local_agent.domain import Measured, ModelId
from shared.contracts.agents import Bench
from shared.kit.whole_file import write_whole

_VERSION = 1
_MOST_ROWS = 200
_MOST_BYTES = 1024 * 1024


class Row(BaseModel):
    """One measurement: of which model, in which configuration, on which machine; and the figures."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str = Field(min_length=1)
    config_hash: str
    machine: str
    figures: Bench
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, str | None, str, str]:
        """Return what a newer measurement has to share to take its place."""
        figures = self.figures
        return self.model, figures.engine, figures.engine_version, self.config_hash, self.machine


class _File(BaseModel):
    version: int = _VERSION
    rows: tuple[Row, ...] = ()


class BenchStore:
    """The file, for several processes at once."""

    def __init__(self, path: Path) -> None:
        """Take the file; it need not exist."""
        self._path = path

    def rows(self) -> tuple[Row, ...]:
        """Return all measurements, newest first; none of a file that can't be read."""
        try:
            if self._path.stat().st_size > _MOST_BYTES:
                return ()
            found = _File.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return ()
        return found.rows if found.version == _VERSION else ()

    def add(self, row: Row) -> None:
        """Keep a measurement in place of an earlier one of the same.

        Raises:
            OSError: the file can't be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            others = [one for one in self.rows() if one.key != row.key]
            text = _File(rows=(row, *others[: _MOST_ROWS - 1])).model_dump_json(indent=1)
            write_whole(self._path, text + "\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let no other process write meanwhile; the lock goes with the process."""
        with self._path.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def measured(
    rows: Iterable[Row], machine: str, versions: Mapping[str, str | None]
) -> tuple[Measured, ...]:
    """Return what counts on this machine.

    Args:
        rows: all that is kept, newest first.
        machine: what this machine is called.
        versions: by engine: which version is here now, as far as that is known. What was measured with
            another one is marked as old.
    """
    found = []
    for row in rows:
        figures = row.figures
        now = versions.get(figures.engine)
        is_old = now is not None and figures.engine_version is not None
        is_old = is_old and now != figures.engine_version
        if row.machine == machine:
            found.append(
                Measured(
                    model=ModelId(row.model),
                    config_hash=row.config_hash,
                    figures=figures,
                    is_old=is_old,
                )
            )
    return tuple(found)
