"""Writes small files so that nobody ever reads a part of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file in an existing folder: a reader, or a start after a crash, finds the old or the new one.

    Raises:
        OSError: it can't be written; the old one is as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
