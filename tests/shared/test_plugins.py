"""The named registry of plug-ins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.kit.plugins import Plugins

EMPTY = "found_plugins"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a package that can be imported, and forget it."""
    package = tmp_path / EMPTY
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.startswith(EMPTY)]:
        del sys.modules[name]


def test_register_keeps_the_item_under_its_name(package: Path) -> None:
    plugins: Plugins[Callable[[], int]] = Plugins("policy", EMPTY)

    @plugins.register("one")
    def one() -> int:
        return 1

    assert plugins["one"] is one
    assert "one" in plugins
    assert "two" not in plugins


def test_a_name_is_taken_once(package: Path) -> None:
    plugins: Plugins[int] = Plugins("engine", EMPTY)
    plugins.register("a")(1)
    with pytest.raises(ValueError, match="engine 'a' is registered twice"):
        plugins.register("a")(2)
    assert plugins["a"] == 1


def test_an_unknown_name_lists_the_known_ones(package: Path) -> None:
    plugins: Plugins[int] = Plugins("backend", EMPTY)
    for name in ("b", "a"):
        plugins.register(name)(0)
    with pytest.raises(LookupError, match="unknown backend 'c'; known: a, b"):
        _ = plugins["c"]
    assert list(plugins) == ["a", "b"]


@pytest.mark.parametrize(
    "first_use", [lambda plugins: plugins["mine"], list, lambda plugins: "mine" in plugins]
)
def test_the_first_use_imports_public_modules_only(
    package: Path, first_use: Callable[[Plugins[int]], object]
) -> None:
    (package / "__init__.py").write_text(
        "from shared.kit.plugins import Plugins\nFOUND = Plugins('policy', __name__)\n"
    )
    (package / "first.py").write_text(
        f"from {EMPTY} import FOUND\nFOUND.register('mine')(1)\n",
    )
    (package / "_private.py").write_text("raise AssertionError\n")
    module = __import__(EMPTY)
    assert f"{EMPTY}.first" not in sys.modules
    assert first_use(module.FOUND)
    assert list(module.FOUND) == ["mine"]
    assert f"{EMPTY}._private" not in sys.modules
