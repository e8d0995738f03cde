"""Reads a worker's log for people: its last lines, then what follows, without the secrets in it."""

from __future__ import annotations

from pathlib import Path

from local_agent.process.log import older_part
from local_agent.process.mask import Mask

_MOST_BYTES = 1024 * 1024
_PIECE_BYTES = 64 * 1024
_LONGEST_LINE = 64 * 1024


class LogReader:
    """Follows one log file, over its rotations and over restarts of its worker.

    Holds one piece at most, whatever is written meanwhile: a reader that falls behind by more than
    both parts of the log misses what was between.
    """

    def __init__(self, path: Path, mask: Mask) -> None:
        """Begin at the end; `last` goes back from there."""
        self._path = path
        self._older = older_part(path)
        self._mask = mask
        self._stamp = _stamp(self._older)
        self._at = _size(path)
        self._rest = b""

    def last(self, lines: int) -> bytes:
        """Return the last whole lines as they are, for `shown`; 1 MiB at most. `more` goes on from there."""
        self._stamp, self._at = _stamp(self._older), _size(self._path)
        begin = max(0, self._at - _MOST_BYTES)
        data = _read(self._path, begin, self._at - begin)
        room = _MOST_BYTES - len(data)
        before = max(0, _size(self._older) - room)
        if room > 0:
            data = _read(self._older, before, room) + data
        is_cut = before > 0 if room > 0 else begin > 0
        if is_cut:  # half a line may begin with half a secret
            data = data[data.find(b"\n") + 1 :]
        whole = data.rfind(b"\n") + 1
        self._rest = data[whole:]
        found = data[:whole].splitlines(keepends=True)
        return b"".join(found[max(0, len(found) - lines) :])

    def more(self) -> str:
        """Return whole lines that were written since; empty if there are none."""
        return self._lines(self._piece())

    def rest(self) -> str:
        """Return the beginning of a line that has no end yet."""
        data, self._rest = self._rest, b""
        return self.shown(data)

    def _piece(self) -> bytes:
        stamp = _stamp(self._older)
        if stamp != self._stamp:  # what was not read yet has become the end of the older part
            piece = _read(self._older, self._at, _PIECE_BYTES)
            self._at += len(piece)
            if len(piece) < _PIECE_BYTES:
                self._stamp, self._at = stamp, 0
            return piece
        if _size(self._path) < self._at:
            self._at = 0  # somebody else has emptied it
        piece = _read(self._path, self._at, _PIECE_BYTES)
        self._at += len(piece)
        return piece

    def _lines(self, piece: bytes) -> str:
        data = self._rest + piece
        # progress bars end their lines with a CR
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if len(data) - end > _LONGEST_LINE:
            data = self._mask.hide(data)
            end = len(data) - self._mask.longest  # a secret may have begun there
        self._rest = data[end:]
        return self.shown(data[:end])

    def shown(self, data: bytes) -> str:
        """Return it as text, without secrets."""
        return self._mask.hide(data).decode(errors="replace")


def _read(path: Path, begin: int, most: int) -> bytes:
    """Return what stands there; nothing if it can't be read."""
    try:
        with path.open("rb") as source:
            source.seek(begin)
            return source.read(most)
    except OSError:
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when the file is written anew; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
