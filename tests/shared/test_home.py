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


def test_a_checkout_has_its_settings_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "Makefile").write_text("")
    monkeypatch.setattr(home, "_ROOT", tmp_path)
    assert home.env_file("/elsewhere") == Path(".env")


def test_an_installation_has_its_settings_in_its_home_wherever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "_ROOT", tmp_path / "site-packages")
    assert home.env_file(None) == home.env_file("") == home.default_home() / ".env"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home.env_file("~/state") == tmp_path / "state" / ".env"
