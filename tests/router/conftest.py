"""Fixtures of the router's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.router.harness import StartRouter, starter


@pytest.fixture
def start_router(tmp_path: Path) -> StartRouter:
    """Return a function that starts routers; see `tests.router.harness.starter`."""
    return starter(tmp_path / "router-home")
