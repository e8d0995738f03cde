from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.k3s import forward
from tests.scripts.k3s.stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    try:
        yield made
    finally:
        forward.end(made.home / "k3s")
        made.end()
