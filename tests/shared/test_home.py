"""Where the state of an installation lies."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from shared.kit import home


def test_a_checkout_keeps_its_state_in_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "Makefile").write_text("")
    monkeypatch.setattr(home, "_ROOT", tmp_path)
    assert home.default_home() == tmp_path / "data"


def test_an_installation_uses_the_folder_of_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(home, "_ROOT", tmp_path)
    found = home.default_home()
    assert found == Path(platformdirs.user_data_dir("iir", appauthor=False))
    assert found.is_absolute()
