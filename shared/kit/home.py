"""Where the state of an installation lies: `IIR_HOME`, and the file of settings."""

from __future__ import annotations

from pathlib import Path

import platformdirs

_ROOT = Path(__file__).resolve().parents[2]


def default_home() -> Path:
    """Return `./data` of a source checkout, else the platform's data folder for `iir`."""
    if _is_checkout():
        return _ROOT / "data"
    return Path(platformdirs.user_data_dir("iir", appauthor=False))


def env_file(home: str | Path | None) -> Path:
    """Return the file of settings: `.env` of the working directory or, installed, of the home.

    An installed program is called from anywhere, also from within other projects: their `.env` is
    none of ours (`DATABASE_URL`, `LOG_LEVEL`), and the settings must not depend on the place.

    Args:
        home: `IIR_HOME` as the environment has it; empty or None: the default one.
    """
    if _is_checkout():
        return Path(".env")
    return (Path(home).expanduser() if home else default_home()) / ".env"


def service_folder(home: Path) -> Path:
    """Return the folder in which a service runs, so that it finds its file of settings.

    Args:
        home: `IIR_HOME` of the service.
    """
    return _ROOT if _is_checkout() else home


def _is_checkout() -> bool:
    return (_ROOT / "pyproject.toml").is_file() and (_ROOT / "Makefile").is_file()
