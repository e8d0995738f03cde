"""The file that tells commands where a service answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.kit.run_file import Address, announced, read_run_file


def test_a_service_is_announced_as_long_as_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "run" / "router.json"
    with pytest.raises(KeyboardInterrupt), announced(path, host="::1", port=8010):
        assert json.loads(path.read_text()) == {"port": 8010, "host": "::1"}
        assert read_run_file(path) == Address(port=8010, host="::1")
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []


def test_the_file_of_a_later_process_stays(tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    with announced(path, host="127.0.0.1", port=8010):
        later = announced(path, host="127.0.0.1", port=8011)
        later.__enter__()
    assert read_run_file(path) == Address(port=8011, host="127.0.0.1")
    later.__exit__(None, None, None)
    assert not path.exists()


def test_a_disk_that_refuses_the_file_stops_no_service(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with announced(tmp_path / "run" / "router.json", host="127.0.0.1", port=8010):
        pass
    assert read_run_file(tmp_path / "run" / "router.json") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"port": 8010}', Address(port=8010)),
        ('{"port": 8010, "host": 3}', Address(port=8010)),
        ('{"port": "8010"}', None),
        ('{"port": true}', None),
        ('{"port": 70000}', None),
        ('{"host": "::1"}', None),
        ("[]", None),
        ("3", None),
        ("{", None),
    ],
)
def test_what_makes_no_sense_counts_as_not_there(
    tmp_path: Path, text: str, found: Address | None
) -> None:
    path = tmp_path / "router.json"
    path.write_text(text)
    assert read_run_file(path) == found
