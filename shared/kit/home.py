"""Where the state of an installation lies: `IIR_HOME`."""

from __future__ import annotations

from pathlib import Path

import platformdirs

_ROOT = Path(__file__).resolve().parents[2]


def default_home() -> Path:
    """Return `./data` of a source checkout, else the platform's data folder for `iir`."""
    if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "Makefile").is_file():
        return _ROOT / "data"
    return Path(platformdirs.user_data_dir("iir", appauthor=False))
