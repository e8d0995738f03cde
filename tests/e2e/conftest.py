"""Fixtures of tests that run both services."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.harness import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a place for a router and an agent, with the agent's credential made."""
    return Site(tmp_path)
