"""What coverage measures of the tests: tracing makes Python code twice as slow, and random cases ten times.

Measured are the measured packages' import, and each test itself. Not measured are collection, pytest's own
work, fixtures, and tests that only slow down by it (`is_measured`): their checks are the same. So the
figure is a lower bound, which does not depend on what a generator happened to draw.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import pytest

MEASURED = ("router", "local_agent", "shared")
# What the tests in these folders run is not in the packages that are measured.
_OF_OTHERS = {"benchmarks", "chart", "scripts", "soak"}
_TESTS = Path(__file__).parent


class _Switch(Protocol):
    """Coverage as pytest-cov's plugin runs it."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


def coverage_of(config: pytest.Config) -> _Switch | None:
    """Return what switches this process's coverage off and on, if it has any."""
    plugin = config.pluginmanager.get_plugin("_cov")
    return cast("_Switch | None", getattr(plugin, "cov_controller", None))


def only_distributes(config: pytest.Config) -> bool:
    """Tell whether this process runs no test: xdist's workers do."""
    is_worker = hasattr(config, "workerinput")
    return not is_worker and config.getoption("dist", "no") != "no"


def import_measured() -> None:
    """Import all that is measured, so that no module's first import falls into what is not."""
    for name in MEASURED:
        for found in pkgutil.walk_packages(import_module(name).__path__, f"{name}."):
            # not imported, or by servers only: these make an application as they are
            is_run = found.name.endswith(("__main__", ".main")) or ".migrations." in found.name
            if not is_run:
                with suppress(ImportError):  # an engine's program needs the engine
                    import_module(found.name)


def is_measured(item: pytest.Item) -> bool:
    """Tell whether a test counts: no random cases, no second event loop, and not what others own.

    `@pytest.mark.no_cover` says it of a single test.
    """
    if any(item.get_closest_marker(name) for name in ("hypothesis", "no_cover")):
        return False
    folder = item.path.relative_to(_TESTS).parts[0]
    if folder == "shared" and "[uvloop" in item.name:  # it runs on asyncio as well
        return False
    return folder not in _OF_OTHERS


@contextmanager
def measured(item: pytest.Item) -> Iterator[None]:
    """Measure what runs meanwhile, if the test counts."""
    coverage = coverage_of(item.config)
    if coverage is None:
        yield
        return
    if is_measured(item):
        coverage.resume()
    try:
        yield
    finally:
        coverage.pause()
