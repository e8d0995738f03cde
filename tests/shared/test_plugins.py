"""The named registry of plug-ins."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.kit.plugins import Plugins


def test_register_keeps_the_item_under_its_name() -> None:
    plugins: Plugins[Callable[[], int]] = Plugins("policy")

    @plugins.register("one")
    def one() -> int:
        return 1

    assert plugins["one"] is one
    assert "one" in plugins
    assert "two" not in plugins


def test_a_name_is_taken_once() -> None:
    plugins: Plugins[int] = Plugins("engine")
    plugins.register("a")(1)
    with pytest.raises(ValueError, match="engine 'a' is registered twice"):
        plugins.register("a")(2)
    assert plugins["a"] == 1


def test_an_unknown_name_lists_the_known_ones() -> None:
    plugins: Plugins[int] = Plugins("backend")
    for name in ("b", "a"):
        plugins.register(name)(0)
    with pytest.raises(LookupError, match="unknown backend 'c'; known: a, b"):
        _ = plugins["c"]
    assert list(plugins) == ["a", "b"]


def test_discover_imports_public_modules_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "found_plugins"
    package.mkdir()
    for name in ("__init__", "first", "_private"):
        (package / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins: Plugins[int] = Plugins("policy")
    try:
        assert plugins.discover("found_plugins") is plugins
        assert "found_plugins.first" in sys.modules
        assert "found_plugins._private" not in sys.modules
    finally:
        for name in [name for name in sys.modules if name.startswith("found_plugins")]:
            del sys.modules[name]
