"""The embedded model, pulled once, and stacks that serve it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.stack import Stack, pull_model


@pytest.fixture(scope="session")
def cache(pytestconfig: pytest.Config) -> Path:
    """Return a folder that outlives the run: `$IIR_TEST_CACHE`, else in pytest's cache."""
    named = os.environ.get("IIR_TEST_CACHE")  # noqa: TID251 - the developer's own setting
    if named:
        Path(named).mkdir(parents=True, exist_ok=True)
        return Path(named)
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("iir")


@pytest.fixture(scope="session")
def models(cache: Path) -> Path:
    """Return a folder with the embedded model's weights."""
    return pull_model(cache)


@pytest.fixture(scope="session")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run one stack for all tests that only ask."""
    stack = Stack(tmp_path_factory.mktemp("served"), models)
    try:
        stack.start()
        yield stack
    finally:
        stack.close()


@pytest.fixture
def stack(models: Path, tmp_path: Path) -> Iterator[Stack]:
    """Run a stack of the test's own, to be treated badly."""
    stack = Stack(tmp_path / "stack", models)
    try:
        stack.start()
        yield stack
    finally:
        stack.close()
