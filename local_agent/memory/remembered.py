"""What an agent learns of its models and should know after its next start: pins by command, peaks.

They lie in `$IIR_HOME/agent/memory.json`, which is replaced as a whole at each change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from local_agent.domain import ModelId
from shared.kit.logs import get_logger
from shared.kit.whole_file import write_whole

_VERSION = 1
_MOST_PEAKS = 500
_MOST_BYTES = 1024 * 1024
_WORTH_MB = 16
"""A peak that has grown by less is kept in memory only: it will grow on."""


class _Peak(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    model: str
    config_hash: str
    mb: int = Field(gt=0)


class _File(BaseModel):
    version: int = _VERSION
    pins: dict[str, bool] = {}
    peaks: tuple[_Peak, ...] = ()


class Remembered:
    """Pins by command, and the most memory that was seen of a model in one configuration."""

    def __init__(self) -> None:
        """Know nothing; tell nobody."""
        self.on_change: Callable[[], None] = _nobody
        self._pins: dict[ModelId, bool] = {}
        self._peaks: dict[tuple[ModelId, str], int] = {}
        self._told: dict[tuple[ModelId, str], int] = {}

    def pin(self, model: ModelId) -> bool | None:
        """Return what the last command said; None if there was none."""
        return self._pins.get(model)

    def set_pin(self, model: ModelId, *, is_pinned: bool) -> None:
        """Take what a command says."""
        self._pins[model] = is_pinned
        self.on_change()

    def peak_mb(self, model: ModelId, config_hash: str) -> int | None:
        """Return the most that was seen; None if it never ran."""
        return self._peaks.get((model, config_hash))

    def saw(self, model: ModelId, config_hash: str, mb: int) -> None:
        """Note what a worker takes."""
        key = (model, config_hash)
        peak = max(mb, self._peaks.pop(key, 0))
        self._peaks[key] = peak  # the last one that was seen stands last
        if peak >= self._told.get(key, 0) + _WORTH_MB:
            self._told[key] = peak
            self.on_change()

    def keep(self, known: Iterable[ModelId]) -> None:
        """Forget the pins of models that are not known any more."""
        kept = set(known)
        self._pins = {model: pin for model, pin in self._pins.items() if model in kept}

    def as_text(self) -> str:
        """Return it as the text of the file; of too many peaks those that were seen last."""
        peaks = list(self._peaks.items())[-_MOST_PEAKS:]
        return _File(
            pins={str(model): pin for model, pin in self._pins.items()},
            peaks=tuple(_Peak(model=model, config_hash=key, mb=mb) for (model, key), mb in peaks),
        ).model_dump_json(indent=1)

    def take(self, text: str) -> None:
        """Know what a file says; one that is not good says nothing."""
        try:
            found = _File.model_validate_json(text)
        except ValidationError:
            return
        if found.version != _VERSION:
            return
        self._pins = {ModelId(model): pin for model, pin in found.pins.items()}
        self._peaks = {(ModelId(one.model), one.config_hash): one.mb for one in found.peaks}
        self._told = dict(self._peaks)


class Memo:
    """Keeps what is remembered in a file."""

    def __init__(self, path: Path, remembered: Remembered) -> None:
        """Read the file, if there is one, and hear of changes from now on."""
        self._path = path
        self._remembered = remembered
        self._changed = anyio.Event()
        self._writing = threading.Lock()
        self._log = get_logger("agent")
        try:
            if path.stat().st_size <= _MOST_BYTES:
                remembered.take(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            pass  # there is none, or none that can be read: what it would tell is learnt again
        remembered.on_change = self._note

    async def run(self) -> None:
        """Write at each change, until cancelled; a disk that is full must not end what clients use."""
        while True:
            await self._changed.wait()
            self._changed = anyio.Event()
            await anyio.to_thread.run_sync(self.save)

    def save(self) -> None:
        """Write the file; threads take turns."""
        with self._writing:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self._path, self._remembered.as_text() + "\n")
            except OSError as error:
                self._log.warning("memory_file_not_written", reason=error.strerror)

    def _note(self) -> None:
        self._changed.set()


def _nobody() -> None:
    return None
